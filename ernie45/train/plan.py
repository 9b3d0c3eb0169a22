"""Who learns in which step of a stage, and at which share of the peak rate.

Knows nothing about gradients: it turns groups and schedule into batches and factors for the optimiser.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ernie45.train.optim import Batch, Optimizer
from ernie45.train.stage import Group, Stage


class StepPlan(NamedTuple):
    """batches and lr_factors: for `Optimizer.step`. factor_of: group -> factor, of the groups that learn in this step."""

    batches: list[Batch]
    lr_factors: list[float]
    factor_of: dict[str, float]


def groups_of(stage: Stage) -> tuple[Group, ...]:
    """The stage's groups; one of all that trains if it names none."""
    return stage.groups or (Group(name=stage.name, trains=stage.trains),)


def group_of(stage: Stage, name: str) -> Group | None:
    """The group that a parameter belongs to in a stage, or None if it does not learn there."""
    return next((group for group in groups_of(stage) if group.trains(name)), None)


def lr_ratio(stage: Stage, name: str) -> float | None:
    """What a parameter's rate is multiplied by in a stage beside its schedule, or None if it does not learn there."""
    group = group_of(stage, name)
    return None if group is None else group.lr_ratio * stage.schedule.peak


class StagePlan:
    """The plan of one stage. A group that rests in some steps has the stage's schedule over the steps in which it learns."""

    def __init__(self, stage: Stage, names: Iterable[str], optimizer: Optimizer) -> None:
        """names: of all parameters that the optimiser has."""
        self._schedule, self._optimizer = stage.schedule, optimizer
        self._groups = {group.name: group for group in groups_of(stage)}
        found = {name: group_of(stage, name) for name in names}
        self._group_of = {name: group.name for name, group in found.items() if group is not None}
        steps = range(stage.schedule.num_steps)
        # Steps in which a group has learnt before each step: the whole stage at once, as any step may be the first of a run.
        self._learnt: dict[str, list[int]] = {}
        for name, group in self._groups.items():
            counts = [0]
            for step in steps:
                counts.append(counts[-1] + bool(group.active(step)))
            self._learnt[name] = counts
        self._batches: dict[frozenset[str], list[Batch]] = {}

    def at(self, step: int) -> StepPlan:
        """The plan of a step of the stage."""
        factors = {}
        for name, learnt in self._learnt.items():
            if learnt[step + 1] > learnt[step]:
                factors[name] = self._schedule.over(learnt[-1]).factor(learnt[step]) * self._groups[name].lr_ratio
        learning = frozenset(factors)
        if learning not in self._batches:
            group_of = self._group_of
            self._batches[learning] = self._optimizer.select(lambda name: group_of.get(name) in learning, group_of.get)
        batches = self._batches[learning]
        return StepPlan(batches, [factors[str(batch.key)] for batch in batches], factors)

    def factor_of(self, name: str, plan: StepPlan) -> float | None:
        """The factor of one parameter in a step, or None if it rests."""
        return plan.factor_of.get(self._group_of.get(name, ""))
