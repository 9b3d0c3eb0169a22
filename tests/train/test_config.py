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
        ("optim.rate", "1", "'optim.rate'\\) is unknown; OptimConfig has optimizer, lr"),
        ("optim", "1", "'optim'\\) is a group"),
        ("seed.x", "1", "goes too deep"),
        ("joint_steps", "many", "must be of type int"),
        ("average", "maybe", "must be of type bool"),
        ("optim.adam_betas", "1", "adam_betas \\(\\(1.0,\\)\\) must be two numbers"),
        ("optim.adam_betas", "0.9,x", "must be of type tuple"),
        ("optim.optimizer", "sgd", "optimizer \\('sgd'\\) must be one of muon, adamw"),
        ("optim.frozen", "(", "pattern \\('\\('\\) is not a regular expression"),
        ("optim.lr_ratios", "pools.vision", "lr_ratios \\('pools.vision'\\) must be PATTERN=RATIO"),
        ("loop.precision", "fp8", "precision \\('fp8'\\) must be one of fp32, bf16"),
        ("optim.lr", "-1", "lr \\(-1.0\\) must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            with_overrides(TinyTrainConfig(), {key: text})


def test_lists_are_set_by_comma() -> None:
    config = with_overrides(TinyTrainConfig(), {"optim.adam_betas": "0.8,0.99", "optim.lr_ratios": "pools.vision=0.5, norm=2"})
    assert config.optim.adam_betas == (0.8, 0.99)
    assert config.optim.ratio_of_pattern() == {"pools.vision": 0.5, "norm": 2.0}
    assert with_overrides(config, {"optim.lr_ratios": "none"}).optim.lr_ratios == ()


def test_the_order_of_overrides_does_not_matter() -> None:
    """4 shards for 4 processes, set in either order; one by one, the second would be refused."""
    settings = [("loop.processes", "4"), ("loop.num_shards", "4")]
    for given in (settings, settings[::-1]):
        assert with_overrides(TinyTrainConfig(), dict(given)).loop.processes == 4


def test_cosine_falls_from_the_warmup_to_the_end() -> None:
    schedule = ScheduleConfig(num_steps=110, kind="cosine", warmup_steps=10, final_ratio=0.2)
    assert schedule.factor(9) == 1.0
    assert schedule.factor(59) == pytest.approx(0.6)  # half way
    assert schedule.factor(109) == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="must be 0 with kind cosine"):
        ScheduleConfig(num_steps=110, kind="cosine", decay_steps=4)


def test_ratios_follow_the_number_of_steps() -> None:
    schedule = ScheduleConfig(num_steps=200, warmup_ratio=0.1, decay_ratio=0.5, warmup_steps=500)
    assert (schedule.warmup, schedule.decay) == (20, 100)
    shorter = with_overrides(schedule, {"num_steps": "10"})
    assert (shorter.warmup, shorter.decay) == (1, 5)


def test_a_schedule_over_fewer_steps_has_the_same_course() -> None:
    schedule = ScheduleConfig(num_steps=100, warmup_steps=10, decay_steps=50, final_ratio=0.1)
    half = schedule.over(50)
    assert [half.factor(step) for step in range(50)] == pytest.approx([schedule.factor(2 * step + 1) for step in range(50)])
    assert schedule.over(100) == schedule
    assert schedule.over(0).num_steps == 1
