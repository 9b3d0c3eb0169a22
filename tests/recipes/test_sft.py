"""Supervised fine-tuning through the one runner, on generated conversations and on files; shortened to seconds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ernie45 import cli
from ernie45.checkpoint import load_model, resolve_model, save_model
from ernie45.checkpoint.adapter import load_adapter
from ernie45.config.errors import CheckpointError, ConfigError, DataError
from ernie45.config.model import ModelConfig
from ernie45.data.tiny.model import tiny_config
from ernie45.model.multimodal import ErnieModel
from ernie45.recipes import runner
from ernie45.train.loop import Run, Trainer
from ernie45.train.storage import load_checkpoint, read_metrics
from ernie45.train.workers import Workers

SHORT = {
    "schedule.num_steps": "4",
    "data.token_budget": "300",
    "held_out.every": "2",
    "held_out.batches": "1",
}
LORA = {"lora.rank": "4", "lora.targets": "all", "lora.dropout": "0.1", "optim.lr": "0.01"}


@pytest.fixture
def request_(tmp_path: Path) -> runner.Request:
    return runner.Request(stage="sft", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=SHORT)


def question(text: str, picture: str | None = None) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture}] if picture else []
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture
def records(tmp_path: Path) -> Callable[..., Path]:
    """records(count, extra lines) -> a file of conversations: text and pictures, with thoughts and without."""

    def make(count: int = 24, *more: dict[str, Any]) -> Path:
        lines = []
        for number in range(count):
            picture = f"{number}.png" if number % 2 else None
            if picture:
                Image.fromarray(np.full((56, 56, 3), 9 * number, np.uint8)).save(tmp_path / picture)
            answer = {"role": "assistant", "content": f"It is {number}."}
            if number % 3 == 0:
                answer["reasoning_content"] = f"{number - 1}+1"
            first = [question("Hello"), {"role": "assistant", "content": "Hello."}] if number % 4 == 0 else []
            lines.append({"messages": [*first, question("Which number?", picture), answer]})
        file = tmp_path / "mine.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]), encoding="utf-8")
        return file

    return make


def test_a_run_learns_and_writes_a_model_folder(request_: runner.Request) -> None:
    assert runner.run(request_)
    entries = {entry["step"]: entry for entry in read_metrics(request_.out / "run")}
    assert {step for step, entry in entries.items() if 0 < entry.get("held_out_loss", 0) < 5} == {1, 3}
    after, before = load_model(request_.out).state_dict(), load_model("tiny").state_dict()
    weight, bias = "layers.0.mlp.down_proj.weight", "layers.1.mlp.pools.text.router.correction_bias"
    assert not after[weight].equal(before[weight])
    assert after[bias].equal(before[bias]), "the recipe leaves the correction biases alone"
    tokenizer = "tokenizer.json"
    assert (request_.out / tokenizer).read_bytes() == (resolve_model("tiny") / tokenizer).read_bytes()


def test_files_are_learnt_and_a_share_is_held_out(
    request_: runner.Request, records: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"messages": [question("What?", "nowhere.png"), {"role": "assistant", "content": "A hole."}]}
    overrides = SHORT | {"held_out.share": "0.25"}
    request = replace(request_, data=(records(24, bad),), overrides=overrides)
    facts = runner.describe(request)
    assert facts["data"]["held_out_records"] == 6
    assert not request.out.exists(), "a dry run leaves nothing"
    assert runner.run(request)
    entry = read_metrics(request.out / "run")[-1]
    assert entry["held_out_loss"] > 0
    assert entry["loss.pictures"] > 0
    assert entry["loss.text"] > 0
    told = capsys.readouterr().err
    assert "1 of " in told
    assert "mine.jsonl:25" in told
    assert "nowhere.png) does not exist" in told


def test_old_skills_can_be_mixed_in(request_: runner.Request, records: Callable) -> None:
    request = replace(request_, data=(records(),), overrides=SHORT | {"generated.share": "0.5"})
    mixed, plain = (
        runner.build(item, runner.resolve(item), Workers()).stages[0].batch
        for item in (request, replace(request, overrides=SHORT))
    )
    for step in range(4):
        drawn, own = mixed(step, 0), plain(step // 2, 0)
        assert drawn.labels_R.equal(own.labels_R) == (step % 2 == 0), "every second step is a generated one"
    with pytest.raises(ConfigError, match="generated.share \\(0.5\\) must be 0 without --data"):
        runner.run(replace(request, data=()))


def test_weightings_change_what_is_learnt(request_: runner.Request, records: Callable) -> None:
    losses = set()
    for weighting in ("token_balanced", "mean", "sample"):
        overrides = SHORT | {"data.weighting": weighting, "schedule.num_steps": "1"}
        request = replace(request_, data=(records(),), overrides=overrides, out=request_.out / weighting)
        assembly = runner.build(request, runner.resolve(request), Workers())
        stage = assembly.stages[0]
        batch = stage.batch(0, 0)
        losses.add(float(stage.objective(stage.forward(assembly.modules, batch), batch, stage.objective_config).loss.detach()))
    assert len(losses) == 3


def test_lora_writes_an_adapter_that_the_model_takes(request_: runner.Request, records: Callable) -> None:
    request = replace(request_, data=(records(),), overrides=SHORT | LORA)
    facts = runner.describe(request)
    assert facts["parameters"]["trained"] < facts["parameters"]["model"]
    assert runner.run(request)
    assert {file.name for file in request.out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "run"}
    assert json.loads((request.out / "adapter_config.json").read_text())["r"] == 4
    assert load_adapter(request.out, load_model("tiny")).num_parameters >= facts["parameters"]["trained"]


@pytest.mark.parametrize("overrides", [{}, LORA], ids=["whole", "lora"])
def test_stopping_and_going_on_changes_no_bit(request_: runner.Request, records: Callable, overrides: dict) -> None:
    request = replace(request_, data=(records(),), overrides=SHORT | overrides)
    config = runner.resolve(request)

    def train(out: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        moved = replace(request, out=out)
        (out / "run").mkdir(parents=True, exist_ok=True)
        assembly = runner.build(moved, config, Workers())
        trainer = Trainer(assembly.modules, assembly.stages, config.loop, config.optim, Workers())
        stop = (lambda: trainer.step == stop_at) if stop_at is not None else (lambda: False)
        trainer.run(Run(folder=out / "run", fingerprint="x", stop_requested=stop))
        return {name: parameter.detach().clone() for name, parameter in assembly.modules.named_parameters()}

    whole = train(request.out / "a", None)
    train(request.out / "b", 1)
    resumed = train(request.out / "b", None)
    assert [name for name, value in whole.items() if not value.equal(resumed[name])] == []


@pytest.mark.parametrize("recipe", ["cold-start", "vision", "fusion"])
def test_steps_of_the_vision_language_recipe(request_: runner.Request, recipe: str) -> None:
    request = replace(request_, recipe=recipe)
    assembly = runner.build(request, runner.resolve(request), Workers())
    batch = assembly.stages[0].batch(0, 0)
    assert (batch.packed.vision is None) == (recipe == "cold-start")


def test_settings_that_do_not_fit(request_: runner.Request) -> None:
    for overrides, message in [
        ({"generated.skills": "read,sing"}, "generated.skills \\('sing'\\) must be all, or among read"),
        ({"generated.thinking_share": "2"}, "generated.thinking_share \\(2.0\\) must be from 0 to 1"),
        ({"held_out.every": "-1"}, "held_out.every \\(-1\\) must be at least 0"),
        ({"held_out.batches": "0"}, "held_out.batches \\(0\\) must be above 0"),
        ({"held_out.share": "1"}, "held_out.share \\(1.0\\) must be at least 0 and below 1"),
        ({"data.weights": "a=1"}, "data.weights .* is not read without --data"),
        (LORA | {"router.bias_rate": "0.1"}, "router.bias_rate \\(0.1\\) must be 0 with lora.rank"),
    ]:
        with pytest.raises(ConfigError, match=message):
            runner.run(replace(request_, overrides=SHORT | overrides))
    with pytest.raises(ConfigError, match="--data must be given beside --eval-data"):
        runner.run(replace(request_, eval_data=(Path(__file__),)))
    assert load_checkpoint(request_.out / "run") is None


def test_data_that_cannot_be_learnt_from(request_: runner.Request, records: Callable, tmp_path: Path) -> None:
    file = records(3)
    request = replace(request_, data=(file,), overrides=SHORT)
    for overrides, error, message in [
        ({"loop.num_shards": "4"}, DataError, "fewer than the 4 of one step; lower data.token_budget"),
        ({"data.token_budget": "9"}, DataError, "no record that can be used.* more than the context of 9"),
        ({"data.context": "200", "data.on_bad": "stop", "data.format": "pairs"}, (ConfigError, DataError), "pairs"),
        ({"data.context": "9999", "data.token_budget": "9999"}, ConfigError, "data.context \\(9999\\) must be at most 2048"),
        ({"held_out.share": "0.5"}, ConfigError, "held_out.share .* must be 0 beside --eval-data"),
    ]:
        with pytest.raises(error, match=message):
            runner.run(
                replace(request, eval_data=(file,) if "held_out.share" in overrides else (), overrides=SHORT | overrides)
            )


def blind_model(folder: Path) -> Path:
    """A text-only model with the tiny model's tokenizer."""
    config: ModelConfig = replace(tiny_config(), vision=None, expert_pools=tiny_config().expert_pools[:1])
    save_model(ErnieModel(config), folder, processor_files_from="tiny")
    return folder


def test_a_model_without_vision(request_: runner.Request, records: Callable, tmp_path: Path) -> None:
    """Pictures are bad records and say why; with nothing else in the file the run ends there."""
    folder = blind_model(tmp_path / "blind")
    request = replace(request_, model=str(folder), data=(records(),), overrides=SHORT)
    assert runner.run(replace(request, overrides=SHORT | {"lora.rank": "2", "schedule.num_steps": "1"}))
    pictures = [json.loads(line) for line in request.data[0].read_text().splitlines()][1::2]
    request.data[0].write_text("".join(json.dumps(line) + "\n" for line in pictures))
    with pytest.raises(DataError, match="no record that can be used; the first: .*mine.jsonl:1.* reads text only"):
        runner.run(replace(request, out=tmp_path / "other"))


def test_a_file_that_has_grown_is_another_one(request_: runner.Request, records: Callable) -> None:
    assert runner.run(replace(request_, data=(records(),)))
    with pytest.raises(CheckpointError, match=r"data: \[.*mine.jsonl \([\d,]+ bytes\)"):
        runner.run(replace(request_, data=(records(25),)))


def test_the_command_says_what_it_has_made(request_: runner.Request, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={name}={value}" for name, value in (SHORT | LORA).items()]
    assert cli.main(["train", "sft", "--model", "tiny", "--out", str(request_.out), *settings]) == 0
    assert f"adapter in {request_.out}; ernie45 serve MODEL --lora-modules" in capsys.readouterr().out


def test_the_folder_of_a_whole_model_is_not_gone_on_with_as_an_adapter(request_: runner.Request) -> None:
    assert runner.run(request_)
    with pytest.raises(CheckpointError, match="lora.rank: 0 -> 4"):
        runner.run(replace(request_, overrides=SHORT | LORA))
