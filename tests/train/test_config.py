"""Schedules and strict overrides."""

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.train import LoopConfig, ScheduleConfig, TinyTrainConfig, with_overrides


def test_warmup_stable_decay() -> None:
    schedule = ScheduleConfig(num_steps=100, warmup_steps=10, decay_steps=50, final_ratio=0.1)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(9) == schedule.factor(49) == 1.0
    # A quarter into the decay, 1 - sqrt(1/4) of the way down to a tenth is left.
    assert schedule.factor(50 + 12) == pytest.approx(0.1 + 0.9 * (1 - (13 / 50) ** 0.5))
    assert schedule.factor(99) == pytest.approx(0.1)
    factors = [schedule.factor(step) for step in range(50, 100)]
    assert factors == sorted(factors, reverse=True)


def test_phases_must_fit() -> None:
    with pytest.raises(ConfigError, match="warmup_steps \\(20\\) and decay_steps \\(90\\) must fit into num_steps \\(100\\)"):
        ScheduleConfig(num_steps=100, warmup_steps=20, decay_steps=90)


def test_processes_must_divide_shards() -> None:
    with pytest.raises(ConfigError, match="processes \\(3\\) must divide num_shards \\(2\\); use one of \\[1, 2\\]"):
        LoopConfig(processes=3)


def test_overrides_are_typed_and_strict() -> None:
    config = with_overrides(TinyTrainConfig(), {"optim.lr": "0.25", "joint_steps": "7", "average": "false"})
    assert (config.optim.lr, config.joint_steps, config.average) == (0.25, 7, False)
    for key, text, message in [
        ("optim.rate", "1", "'optim.rate'\\) is unknown; OptimConfig has lr"),
        ("optim", "1", "'optim'\\) is a group"),
        ("seed.x", "1", "goes too deep"),
        ("joint_steps", "many", "must be of type int"),
        ("average", "maybe", "must be of type bool"),
        ("optim.adam_betas", "1", "cannot be set from the command line"),
        ("optim.lr", "-1", "lr \\(-1.0\\) must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            with_overrides(TinyTrainConfig(), {key: text})
