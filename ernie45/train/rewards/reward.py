"""What a reward is: a judge of batches, and the guard that turns whatever goes wrong with it into events.

Knows nothing about any single judge or how they are composed.
"""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ernie45.data.answers import Graded, Score

logger = logging.getLogger(__name__)


class Unscored(Exception):
    """Raised by a judge for one answer that it cannot score. kind: of the event, in snake_case; detail: one line."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Reward(ABC):
    """A judge. Subclasses are dataclasses: their fields, all with defaults, are the options of the spec."""

    sees_thoughts: ClassVar[bool] = False

    def start(self) -> None:  # noqa: B027  most need nothing
        """Check what the judge stands on (a package, an address, the system), before training. ConfigError says what lacks."""

    def close(self) -> None:  # noqa: B027  as above
        """End processes and connections that the judge holds."""

    def applies(self, item: Graded) -> bool:
        """Whether the reference is of the kind that this judge compares with; asked by `first`."""
        return True

    @abstractmethod
    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        """As many scores as answers, in their order."""


class PerAnswer(Reward):
    """A judge that looks at one answer at a time."""

    @abstractmethod
    def value(self, item: Graded) -> float:
        """The score. Unscored, or any other exception, makes it an event."""

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        return [self._score(item) for item in batch]

    def _score(self, item: Graded) -> Score:
        try:
            return Score(value=float(self.value(item)))
        except Exception as error:  # noqa: BLE001  a defect of one judge costs the answer its score, not the run its life
            return failure(error)


def guarded(reward: Reward, batch: Sequence[Graded]) -> list[Score]:
    """The judge's scores, with thoughts hidden from a judge that does not ask for them; never raises.

    An exception becomes the event of all answers of the batch, a value that is no finite number that of its answer.
    """
    shown = batch if reward.sees_thoughts else [item.without_thoughts() for item in batch]
    try:
        scores = reward.judge(shown)
        if len(scores) != len(batch):
            raise ValueError(f"{len(scores)} scores for {len(batch)} answers")
    except Exception as error:  # noqa: BLE001  as above
        return [failure(error)] * len(batch)
    return [
        score if score.value is None or math.isfinite(score.value) else Score.failed("not_finite", repr(score.value))
        for score in scores
    ]


def failure(error: Exception) -> Score:
    """The event that an exception stands for."""
    if isinstance(error, Unscored):
        return Score.failed(error.kind, error.detail)
    if isinstance(error, TimeoutError):
        return Score.failed("timeout", str(error))
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()
    return Score.failed(f"raised_{name}", str(error))


def references(item: Graded) -> tuple[str, ...]:
    """All right answers of a record: `extra["answers"]` and the reference. Unscored if there is none."""
    found = item.extra.get("answers", ())
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise Unscored("bad_reference", f"answers ({found!r}) must be a list of texts")
    several = (*(() if item.reference is None else (item.reference,)), *found)
    if not several:
        raise Unscored("no_reference", "the record has no answer")
    return several
