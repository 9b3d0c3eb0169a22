"""One question about pictures or numbers with its answer in two forms, direct and thinking.

Knows nothing about token ids or how pictures are made.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question, the thoughts that lead to its answer, and the answer."""

    question: str
    reasoning: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation to learn from or to be scored on; only the last turn's answer counts.

    skill: which score it belongs to. pictures: uint8 [H, W, 3] each, all in the first user message; sides are multiples of 28.
    pictures_first: whether they stand before or after the first question. history: earlier turns, their thoughts not shown.
    """

    skill: str
    turn: Turn
    pictures: tuple[np.ndarray, ...] = ()
    pictures_first: bool = True
    history: tuple[Turn, ...] = field(default=())

    def prompt_messages(self) -> list[dict[str, Any]]:
        """The conversation up to the question, for `Processor.encode_chat`."""
        messages: list[dict[str, Any]] = []
        for place, turn in enumerate((*self.history, self.turn)):
            messages.append({"role": "user", "content": self._content(turn, with_pictures=place == 0)})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages[:-1]

    def messages(self, thinking: bool) -> list[dict[str, Any]]:
        """The conversation with its answer, thoughts included if `thinking`."""
        answer = {"role": "assistant", "content": self.turn.answer}
        if thinking:
            answer["reasoning_content"] = self.turn.reasoning
        return [*self.prompt_messages(), answer]

    def _content(self, turn: Turn, with_pictures: bool) -> str | list[dict[str, Any]]:
        if not (with_pictures and self.pictures):
            return turn.question
        pictures: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(picture)} for picture in self.pictures]
        text = [{"type": "text", "text": turn.question}]
        return pictures + text if self.pictures_first else text + pictures
