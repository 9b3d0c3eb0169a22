"""The reward stage through the runner: what it learns holds for new pictures, and the folder it writes scores alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from ernie45.config.errors import ConfigError
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter
from ernie45.evals.heldout import heldout_digits
from ernie45.recipes import runner
from ernie45.train.reward_model import RewardModel
from ernie45.train.storage import read_metrics

SHORT = {
    "schedule.num_steps": "20",
    "schedule.warmup_steps": "2",
    "schedule.decay_steps": "10",
    "pairs.generated": "64",
    "pairs.held_out": "24",
    "pairs.pairs_per_step": "8",
    "pairs.short_share": "1",
}


def test_a_taste_is_learnt_and_can_be_asked_for(tmp_path: Path) -> None:
    request = runner.Request(stage="reward", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=SHORT)
    assert runner.run(request)
    entry = read_metrics(request.out / "run")[-1]
    assert entry["held_out_accuracy"] > 0.9
    pairs = preference_pairs("held out", 24, StripWriter(heldout_digits(), distort=False), 1.0)
    scorer = RewardModel.load(request.out)
    chosen, rejected = (
        scorer.score([[*pair.prompt, *side(pair)] for pair in pairs]) for side in (lambda p: p.chosen, lambda p: p.rejected)
    )
    right = sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(pairs)
    assert right == pytest.approx(entry["held_out_accuracy"], abs=0.05), "the folder has the weights in bf16"
    margin = sum(one - other for one, other in zip(chosen, rejected, strict=True)) / len(pairs)
    assert margin == pytest.approx(entry["held_out_margin"], rel=0.1)
    with pytest.raises(ConfigError, match=r"centring \(-1.0\) must be at least 0"):
        runner.describe(replace(request, overrides=SHORT | {"reward.centring": "-1"}))
