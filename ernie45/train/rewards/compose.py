"""Compositions of judges: weighted sum, product (a gate, if the first is one), first that applies.

Knows nothing about the judges it composes. An event of any part that is needed is the event of the whole, never a zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ernie45.data.answers import Graded, Score
from ernie45.train.rewards.reward import Reward, guarded


@dataclass(frozen=True, kw_only=True)
class Leaf(Reward):
    """One judge under the guard; its value is also kept by its name in `Score.parts`."""

    reward: Reward
    name: str
    sees_thoughts = True  # the guard decides for the judge itself

    def start(self) -> None:
        self.reward.start()

    def close(self) -> None:
        self.reward.close()

    def applies(self, item: Graded) -> bool:
        return self.reward.applies(item)

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        if not batch:
            return []
        scores = guarded(self.reward, batch)
        return [
            replace(score, detail=f"{self.name}: {score.detail}")
            if score.value is None
            else replace(score, parts={**score.parts, self.name: score.value})
            for score in scores
        ]


@dataclass(frozen=True, kw_only=True)
class Composition(Reward):
    """Several judges as one."""

    parts: tuple[Reward, ...]
    sees_thoughts = True

    def start(self) -> None:
        for part in self.parts:
            part.start()

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def applies(self, item: Graded) -> bool:
        return all(part.applies(item) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Sum(Composition):
    """Sum of weight * value."""

    weights: tuple[float, ...]

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        columns = [part.judge(batch) for part in self.parts]

        def total(scores: Sequence[Score]) -> float:
            return sum(weight * (score.value or 0.0) for weight, score in zip(self.weights, scores, strict=True))

        return [_joined(row, total) for row in zip(*columns, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Product(Composition):
    """Product of values. A part judges only what no part before it gave 0 or no score to: put cheap gates first."""

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        scores: list[Score] = [Score(value=1.0) for _ in batch]
        for part in self.parts:
            open_ones = [index for index, score in enumerate(scores) if score.value]
            for index, new in zip(open_ones, part.judge([batch[index] for index in open_ones]), strict=True):
                scores[index] = _joined((scores[index], new), lambda row: (row[0].value or 0.0) * (row[1].value or 0.0))
        return scores


@dataclass(frozen=True, kw_only=True)
class First(Composition):
    """The first part that applies to the answer's reference; the event "no_reward_applies" if none does."""

    def applies(self, item: Graded) -> bool:
        return any(part.applies(item) for part in self.parts)

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        scores = [Score.failed("no_reward_applies", f"reference {item.reference!r}") for item in batch]
        chosen = [next((place for place, part in enumerate(self.parts) if part.applies(item)), -1) for item in batch]
        for place, part in enumerate(self.parts):
            own = [index for index, choice in enumerate(chosen) if choice == place]
            for index, score in zip(own, part.judge([batch[index] for index in own]), strict=True):
                scores[index] = score
        return scores


def _joined(scores: Sequence[Score], value: Callable[[Sequence[Score]], float]) -> Score:
    """The first event, or the value with the parts of all."""
    for score in scores:
        if score.value is None:
            return score
    parts = {name: part for score in scores for name, part in score.parts.items()}
    return Score(value=value(scores), parts=parts)
