"""A stage: data, forward, objective and schedule put together. The loop runs stages one after the other.

Knows nothing about processes, files or progress.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ernie45.config.train import RouterConfig, ScheduleConfig
from ernie45.train.objectives.loss import Loss


class Stateful(Protocol):
    """What can be put into a checkpoint: plain types and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters of a stage that learn together.

    trains: by name; a parameter belongs to the first group of its stage that has it. lr_ratio: of its rate in the stage.
    active: whether they learn in a step of the stage; pure. In other steps they get no update, no decay and no moments, and
    their schedule stands still: it runs over the group's own steps.
    """

    name: str
    trains: Callable[[str], bool]
    lr_ratio: float = 1.0
    active: Callable[[int], bool] = field(default=lambda step: True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    batch: (step, shard) -> batch; pure, so that a run can go on at any step. forward: (modules, batch) -> outputs, with the
    trainer's modules by name. objective: (outputs, batch, config) -> Loss; pure. trains: which parameters, by name
    ("model.norm.weight"), learn here; groups: the same in groups, in its place if there are any. routers: upkeep of the routers
    whose gates learn, or None where they do not run. keeps_average: whether the averaged weights follow. before_step: called on
    every process before the shards of a step (rollouts, a curriculum); its numbers are logged. stateful: what else a step
    depends on, by name, kept in checkpoints. evaluate: called with the modules on every process after each `evaluate_every`-th
    step and after the last one; its numbers are logged.
    """

    name: str
    schedule: ScheduleConfig
    batch: Callable[[int, int], Any]
    forward: Callable[[Any, Any], Any]
    objective: Callable[[Any, Any, Any], Loss]
    objective_config: Any = None
    trains: Callable[[str], bool] = field(default=lambda name: True)
    groups: tuple[Group, ...] = ()
    routers: RouterConfig | None = None
    keeps_average: bool = False
    before_step: Callable[[int], Mapping[str, float]] | None = None
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    evaluate_every: int = 0

    def evaluates_after(self, step: int) -> bool:
        """Whether a step of this stage, counted from 0, ends with an evaluation."""
        if self.evaluate is None:
            return False
        last = step + 1 == self.schedule.num_steps
        return last or (self.evaluate_every > 0 and (step + 1) % self.evaluate_every == 0)
