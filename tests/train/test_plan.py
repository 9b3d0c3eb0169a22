"""Groups of a stage: who learns when, and schedules that stand still."""

from typing import Any

import pytest
import torch
from torch import nn

from ernie45.config.train import OptimConfig, ScheduleConfig
from ernie45.train.optim import Optimizer
from ernie45.train.plan import StagePlan, lr_ratio
from ernie45.train.stage import Group, Stage


def stage(*groups: Group, num_steps: int = 12) -> Stage:
    def unused(*_: Any) -> Any:
        raise AssertionError

    schedule = ScheduleConfig(num_steps=num_steps, warmup_steps=num_steps // 4, decay_steps=num_steps // 3, peak=2)
    return Stage(name="s", schedule=schedule, batch=unused, forward=unused, objective=unused, groups=groups)


def optimizer() -> Optimizer:
    names = ("model.norm.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight", "other")
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (4,) if "norm" in name or name == "other" else (4, 4) for name in names}
    return Optimizer(
        {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}, OptimConfig()
    )


def plan_of(made: Stage, of: Optimizer) -> StagePlan:
    return StagePlan(made, [span.name for span in of.flat.spans], of)


def test_without_groups_all_follow_the_schedule() -> None:
    made, of = stage(), optimizer()
    plan = plan_of(made, of)
    for step in range(12):
        at = plan.at(step)
        assert at.lr_factors == [made.schedule.factor(step)] * len(at.batches)
        assert plan.factor_of("other", at) == made.schedule.factor(step)
    assert lr_ratio(made, "anything") == 2


def test_a_resting_group_has_its_schedule_over_its_own_steps() -> None:
    """`text` learns in every third step: in its 4 steps it rises, stays and falls as the stage does in 12."""
    text = Group(name="text", trains=lambda name: "layers" in name, lr_ratio=0.5, active=lambda step: step % 3 == 2)
    rest = Group(name="rest", trains=lambda name: name != "other")
    made, of = stage(text, rest), optimizer()
    plan = plan_of(made, of)
    own = made.schedule.over(4)
    assert (own.warmup, own.decay) == (1, 1)
    factors = [plan.at(step).factor_of.get("text") for step in range(12)]
    assert [factor for factor in factors if factor is not None] == pytest.approx([0.5 * own.factor(step) for step in range(4)])
    assert [step for step, factor in enumerate(factors) if factor is not None] == [2, 5, 8, 11]
    assert [plan.at(step).factor_of["rest"] for step in range(12)] == [made.schedule.factor(step) for step in range(12)]
    names = {step: {span.name for batch in plan.at(step).batches for span in batch.spans} for step in (0, 2)}
    assert names[0] == {"model.norm.weight"}
    assert names[2] == {"model.norm.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    assert plan.factor_of("other", plan.at(2)) is None
    assert (lr_ratio(made, "model.layers.0.x"), lr_ratio(made, "other")) == (1.0, None)


def test_resting_parameters_keep_value_moments_and_count() -> None:
    resting = Group(name="resting", trains=lambda name: "layers.1" in name or name == "other", active=lambda step: step == 1)
    made, of = stage(resting, Group(name="rest", trains=lambda name: True)), optimizer()
    plan = plan_of(made, of)
    before = of.flat.state_dict() | of.state_dict()
    of.flat.grads.fill_(1.0)
    at = plan.at(0)
    of.step(at.batches, at.lr_factors)
    after = of.flat.state_dict() | of.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        *("model.norm.weight", "model.layers.0.mlp.down_proj.weight"),
        *("first.model.norm.weight", "first.model.layers.0.mlp.down_proj.weight"),
        *("second.model.norm.weight", "steps.model.norm.weight"),
    }
