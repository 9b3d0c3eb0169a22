"""An answer on its way through a rollout: its reward, advantages and what models said of it; and the buffer of them all.

Knows nothing about who fills it or learns from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ernie45.train.rollout import Answer

_ARRAYS = ("advantages_N", "old_N", "reference_N", "values_N", "returns_N")


@dataclass(kw_only=True)
class Episode:
    """An answer and what is to be learnt from it. reward: nan if there is none. Arrays as in `PolicyItem`."""

    answer: Answer
    num_prompt_tokens: int
    reward: float = float("nan")
    weight: float = 0.0
    advantages_N: np.ndarray | None = None
    old_N: np.ndarray | None = None
    reference_N: np.ndarray | None = None
    values_N: np.ndarray | None = None
    returns_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.answer.token_ids)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        kept = {name: None if array is None else torch.from_numpy(array.copy()) for name, array in arrays.items()}
        plain = {name: getattr(self, name) for name in ("num_prompt_tokens", "reward", "weight")}
        return {"answer": self.answer.state_dict(), **plain, **kept}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Episode":
        """What `state_dict` gave."""
        plain = {name: state[name] for name in ("num_prompt_tokens", "reward", "weight")}
        episode = cls(answer=Answer.from_state(state["answer"]), **plain)
        for name in _ARRAYS:
            setattr(episode, name, None if state[name] is None else state[name].numpy())
        return episode


Place = tuple[int, int]
"""Update of a rollout, and shard."""


@dataclass
class Buffer:
    """What is left to learn of a rollout: episodes of each (update, shard), in groups by prompt."""

    episodes: dict[Place, list[Episode]] = field(default_factory=dict)

    def state_dict(self) -> list[Any]:
        return [[*place, [item.state_dict() for item in items]] for place, items in self.episodes.items()]

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> "Buffer":
        return cls({(update, shard): [Episode.from_state(item) for item in items] for update, shard, items in state})
