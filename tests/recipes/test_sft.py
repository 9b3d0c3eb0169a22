"""Supervised fine-tuning through the one runner, on generated conversations; shortened to seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ernie45.checkpoint import load_model, resolve_model
from ernie45.config.errors import ConfigError
from ernie45.recipes import runner
from ernie45.train.storage import load_checkpoint, read_metrics

SHORT = {
    "schedule.num_steps": "4",
    "data.token_budget": "300",
    "held_out.every": "2",
    "held_out.batches": "1",
}


@pytest.fixture
def request_(tmp_path: Path) -> runner.Request:
    return runner.Request(stage="sft", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=SHORT)


def test_a_run_learns_and_writes_a_model_folder(request_: runner.Request) -> None:
    assert runner.run(request_)
    entries = {entry["step"]: entry for entry in read_metrics(request_.out / "run")}
    assert set(entries) == {1, 3}, "steps with a held-out loss are logged"
    assert all(0 < entry["held_out_loss"] < 5 for entry in entries.values())
    after, before = load_model(request_.out), load_model("tiny")
    assert not torch.equal(after.layers[0].mlp.down_proj.weight, before.layers[0].mlp.down_proj.weight)
    bias = "layers.1.mlp.pools.text.router.correction_bias"
    assert torch.equal(after.state_dict()[bias], before.state_dict()[bias]), "the recipe leaves the correction biases alone"
    tokenizer = "tokenizer.json"
    assert (request_.out / tokenizer).read_bytes() == (resolve_model("tiny") / tokenizer).read_bytes()


def test_settings_that_do_not_fit(request_: runner.Request) -> None:
    for overrides, message in [
        ({"generated.skills": "read,sing"}, "generated.skills \\('sing'\\) must be all, or among read"),
        ({"generated.thinking_share": "2"}, "thinking_share \\(2.0\\) must be from 0 to 1"),
        ({"held_out.every": "-1"}, "held_out.every \\(-1\\) must be at least 0"),
        ({"held_out.batches": "0"}, "held_out.batches \\(0\\) must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            runner.run(replace(request_, overrides=SHORT | overrides))
    assert load_checkpoint(request_.out / "run") is None
