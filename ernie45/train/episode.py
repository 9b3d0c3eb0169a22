"""What is learnt from a rollout: episodes with their rewards, advantages and what models said of them, in portions.

Knows nothing about who fills it or learns from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ernie45.train.rollout import Answer

_PLAIN = ("num_tokens", "num_labels", "pair", "reward", "weight")
_ARRAYS = ("advantages_N", "old_N", "reference_N", "values_N", "returns_N")


@dataclass(kw_only=True)
class Episode:
    """A sampled answer, or one side of a pair that somebody made, and what is to be learnt from it.

    num_tokens: of prompt and answer; num_labels: of the answer. pair: (number in the set of pairs, 0 for the chosen and 1 for
    the rejected side), where there is no sampled answer. reward: nan if there is none. Arrays and weight as in `PolicyItem`.
    """

    answer: Answer | None = None
    pair: tuple[int, int] = (-1, 0)
    num_tokens: int
    num_labels: int
    reward: float = float("nan")
    weight: float = 0.0
    advantages_N: np.ndarray | None = None
    old_N: np.ndarray | None = None
    reference_N: np.ndarray | None = None
    values_N: np.ndarray | None = None
    returns_N: np.ndarray | None = None

    @classmethod
    def of(cls, answer: Answer, num_prompt_tokens: int) -> "Episode":
        """A sampled answer without a reward yet."""
        return cls(answer=answer, num_tokens=num_prompt_tokens + len(answer.token_ids), num_labels=len(answer.token_ids))

    @property
    def has_reward(self) -> bool:
        return not np.isnan(self.reward)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        kept = {name: None if array is None else torch.from_numpy(array.copy()) for name, array in arrays.items()}
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {"answer": None if self.answer is None else self.answer.state_dict(), **plain, **kept}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Episode":
        """What `state_dict` gave."""
        answer = None if state["answer"] is None else Answer.from_state(state["answer"])
        episode = cls(answer=answer, num_tokens=0, num_labels=0)
        for name in _PLAIN:
            setattr(episode, name, state[name])
        for name in _ARRAYS:
            setattr(episode, name, None if state[name] is None else state[name].numpy())
        return episode


@dataclass(kw_only=True)
class Portion:
    """The episodes of one shard of one update, groups side by side. pairs: (better, worse) places in `episodes`, each counting
    `pair_weight`; token_weight: 1 / labels of all better ones of the update."""

    episodes: list[Episode] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    pair_weight: float = 0.0
    token_weight: float = 0.0

    @property
    def num_tokens(self) -> int:
        return sum(episode.num_tokens for episode in self.episodes)

    def add(self, group: Sequence[Episode], pair: tuple[int, int] | None = None) -> None:
        """Take a group; pair: the places in it of a better and a worse answer."""
        start = len(self.episodes)
        self.episodes += group
        if pair is not None:
            self.pairs.append((start + pair[0], start + pair[1]))

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {
            "episodes": [episode.state_dict() for episode in self.episodes],
            "pairs": [list(pair) for pair in self.pairs],
            "pair_weight": self.pair_weight,
            "token_weight": self.token_weight,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Portion":
        """What `state_dict` gave."""
        return cls(
            episodes=[Episode.from_state(item) for item in state["episodes"]],
            pairs=[(better, worse) for better, worse in state["pairs"]],
            pair_weight=state["pair_weight"],
            token_weight=state["token_weight"],
        )
