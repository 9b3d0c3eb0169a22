"""The judge that was trained: a reward model's score of the conversation with its answer.

Knows nothing about how it was trained (`train.reward_model`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ernie45.config.errors import ConfigError, Ernie45Error
from ernie45.data.answers import Graded, Score
from ernie45.train.rewards.reward import Reward, failure


@dataclass(frozen=True, kw_only=True)
class Model(Reward):
    """Score of the reward model in the folder `path` (of `ernie45 train reward`). Its zero and unit are those of its pairs: use
    normalise, or weigh it. thoughts: it sees them. Pictures of the prompt are shown to it."""

    path: str = ""
    thoughts: bool = False
    loaded: list[Any] = field(init=False, default_factory=list, repr=False, compare=False)
    sees_thoughts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "path ('') of reward model must be a folder of `ernie45 train reward`, as in model(path=runs/reward)"
            )

    def start(self) -> None:
        if not self.loaded:
            from ernie45.train.reward_model import RewardModel

            self.loaded.append(RewardModel.load(self.path))

    def close(self) -> None:
        self.loaded.clear()

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        self.start()
        conversations = [self._conversation(item) for item in batch]
        try:
            return self._scores(conversations)
        except Ernie45Error:
            # One of them cannot be read: the others get their scores all the same.
            return [self._alone(conversation) for conversation in conversations]

    def _alone(self, conversation: list[Any]) -> Score:
        try:
            return self._scores([conversation])[0]
        except Ernie45Error as error:
            return failure(error)

    def _scores(self, conversations: list[list[Any]]) -> list[Score]:
        [model] = self.loaded
        return [Score(value=float(value)) for value in model.score(conversations)]

    def _conversation(self, item: Graded) -> list[Any]:
        answer = {"role": "assistant", "content": item.answer}
        if self.thoughts and item.thoughts:
            answer["reasoning_content"] = item.thoughts
        return [*item.messages, answer]
