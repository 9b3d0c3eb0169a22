"""Judges of an answer's form, whatever it says: thoughts closed once, a pattern, length.

Know nothing about right and wrong.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded
from ernie45.processor.reasoning import THINK_END
from ernie45.train.rewards.reward import PerAnswer, Unscored

_TAGS = ("<think>", THINK_END, "<response>", "</response>")


@dataclass(frozen=True, kw_only=True)
class Format(PerAnswer):
    """1 if the form is right, else 0: a thought that the prompt left open is closed once, without one no tag of it is written;
    the answer is not empty and has no tag; and the model ended by itself.

    thought: not empty, where the prompt asks for one. finished: cut off answers get 0 (false: they are not looked at for that).
    """

    thought: bool = False
    finished: bool = True
    sees_thoughts: ClassVar[bool] = True

    def value(self, item: Graded) -> float:
        right = (
            item.num_thought_ends == int(item.thinking),
            item.answer.strip(),
            not any(tag in item.answer for tag in _TAGS),
            "<think>" not in item.thoughts,
            item.thoughts.strip() or not (self.thought and item.thinking),
            item.finished or not self.finished,
        )
        return float(all(right))


@dataclass(frozen=True, kw_only=True)
class Length(PerAnswer):
    """Soft overlong punishment, from 0 to -1 in tokens of the whole output L, thoughts included:

        0                          L <= max - cache
        (max - cache - L) / cache  max - cache < L <= max
        -1                         L > max

    Source: Yu et al., DAPO, 2025, equation 13 (there max 20,480 and cache 4,096).
    """

    max: int = 20480
    cache: int = 4096
    sees_thoughts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max:
            raise ConfigError(f"cache ({self.cache}) of reward length must be above 0 and at most max ({self.max})")

    def value(self, item: Graded) -> float:
        if item.num_tokens <= 0:
            raise Unscored("no_length", "the number of tokens is not known")
        free = self.max - self.cache
        return float(min(0.0, max(-1.0, (free - item.num_tokens) / self.cache)))


def search(item: Graded, pattern: str) -> float:
    """1 if the pattern is found in the answer; runs in a worker process, as a bad pattern may take for ever."""
    return float(re.search(pattern, item.answer, flags=re.DOTALL) is not None)
