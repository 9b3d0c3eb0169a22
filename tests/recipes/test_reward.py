"""The reward stage through the runner: what it learns holds for new questions, and the folder it writes scores alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ernie45.config.errors import ConfigError
from ernie45.recipes import runner
from ernie45.train.reward_model import RewardModel
from ernie45.train.storage import read_metrics

SHORT = {"schedule.num_steps": "12", "pairs.pairs_per_step": "8"}


def write_pairs(path: Path, numbers: range) -> Path:
    """A sentence is better than a bare number."""
    pairs = [{"prompt": f"What is {n}+1?", "chosen": f"It is {n + 1}.", "rejected": str(n + 1)} for n in numbers]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def test_a_taste_is_learnt_and_can_be_asked_for(tmp_path: Path) -> None:
    request = runner.Request(
        stage="reward",
        recipe="tiny",
        out=tmp_path / "out",
        model="tiny",
        data=(write_pairs(tmp_path / "train.jsonl", range(10, 60)),),
        eval_data=(write_pairs(tmp_path / "test.jsonl", range(60, 90)),),
        overrides=SHORT,
    )
    assert runner.run(request)
    entry = read_metrics(request.out / "run")[-1]
    assert entry["held_out_accuracy"] > 0.9
    asked = [{"role": "user", "content": f"What is {n}+1?"} for n in range(60, 90)]
    answers = [(f"It is {n + 1}.", str(n + 1)) for n in range(60, 90)]
    scorer = RewardModel.load(request.out)
    chosen, rejected = (
        scorer.score([[one, {"role": "assistant", "content": own[side]}] for one, own in zip(asked, answers, strict=True)])
        for side in (0, 1)
    )
    right = sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(chosen)
    assert right == pytest.approx(entry["held_out_accuracy"], abs=0.04), "the folder has the weights in bf16"
    margin = sum(one - other for one, other in zip(chosen, rejected, strict=True)) / len(chosen)
    assert margin == pytest.approx(entry["held_out_margin"], rel=0.1)


def test_generated_pairs_and_bad_settings(tmp_path: Path) -> None:
    few = SHORT | {"pairs.generated": "16", "pairs.held_out": "4"}
    request = runner.Request(stage="reward", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=few)
    facts = runner.describe(request)
    assert (facts["pairs"], facts["held_out_pairs"], facts["epochs"]) == (16, 4, 6.0)
    with pytest.raises(ConfigError, match=r"centring \(-1.0\) must be at least 0"):
        runner.describe(replace(request, overrides=few | {"reward.centring": "-1"}))
