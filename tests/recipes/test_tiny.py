"""The tiny recipe, shortened to seconds: from nothing to a model folder, interrupted and refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ernie45.checkpoint import load_model, read_config
from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.train import TinyTrainConfig
from ernie45.data.tiny.model import tiny_config
from ernie45.processor import Processor
from ernie45.recipes import ship, tiny
from ernie45.train.storage import read_metrics

SHORT = {
    "vision_steps": "2",
    "joint_steps": "2",
    "supervised_steps": "2",
    "pictures": "2",
    "token_budget": "200",
    "loop.num_shards": "1",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run; scores are left out, as an untrained model talks on and on."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "finish", lambda out, config: None)
        assert tiny.run(out, processes=1, overrides=SHORT)
    return out


def test_a_run_writes_a_whole_model_folder(finished: Path) -> None:
    assert read_config(finished) == tiny_config()
    processor = Processor.from_dir(finished)
    assert processor.stop_token_ids == (2, processor.tokenizer.id_of("<|end_of_sentence|>"))
    assert load_model(finished).config == tiny_config()
    generation = json.loads((finished / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(processor.stop_token_ids)
    assert sum(file.stat().st_size for file in finished.iterdir() if file.is_file()) <= ship.MAX_BYTES
    settings = json.loads((finished / tiny.RUN_FOLDER / "config.json").read_text())
    assert settings["vision_steps"] == 2
    stages = [entry["stage"] for entry in read_metrics(finished / tiny.RUN_FOLDER)]
    assert stages == ["vision", "vision", "joint", "joint", "supervised", "supervised"]


def test_the_same_command_does_not_train_twice(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "finish", lambda out, config: None)
    before = (finished / "model.safetensors").read_bytes()
    monkeypatch.setattr("ernie45.train.loop.Trainer._step", lambda *_: pytest.fail("a finished run was trained on"))
    assert tiny.run(finished, processes=1, overrides=SHORT)
    assert (finished / "model.safetensors").read_bytes() == before


def test_other_settings_are_refused_and_fresh_starts_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "finish", lambda out, config: None)
    with pytest.raises(CheckpointError, match="other settings"):
        tiny.run(finished, processes=1, overrides=SHORT | {"optim.lr": "0.001"})
    assert tiny.run(finished, processes=1, overrides=SHORT, fresh=True)


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    for overrides, processes, message in [
        ({"optim.rate": "1"}, 1, "'optim.rate'\\) is unknown"),
        ({}, 3, "processes \\(3\\) must divide"),
        ({"joint_steps": "0"}, 1, "joint_steps \\(0\\) must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tiny.run(tmp_path / "out", processes=processes, overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_stages_follow_the_real_order() -> None:
    stages = tiny.stages_of(TinyTrainConfig(), tiny.tiny_processor())
    assert [stage.name for stage in stages] == ["vision", "joint", "supervised"]
    assert stages[0].trains("model.vision_model.ln.weight")
    assert not stages[0].trains("model.layers.0.self_attn.o_proj.weight")
    assert stages[1].trains("model.layers.0.self_attn.o_proj.weight")
    assert not stages[1].trains("head.proj.weight")
    assert stages[2].schedule.factor(0) == 1.0
    assert stages[2].schedule.factor(stages[2].schedule.num_steps - 1) == pytest.approx(0.01)


def test_shipping_needs_a_finished_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not finished"):
        ship.ship(finished, tmp_path)
    with pytest.raises(CheckpointError, match="is not finished"):
        ship.ship(tmp_path / "nothing", tmp_path)


def test_shipping_copies_model_samples_and_pictures(finished: Path, tmp_path: Path) -> None:
    run = finished / tiny.RUN_FOLDER
    (run / "samples").mkdir(exist_ok=True)
    for name in ("samples/samples.json", "curves.png", "experts.png"):
        (run / name).write_text("[]")
    package = tmp_path / "package"
    ship.ship(finished, package)
    assert read_config(package / "assets" / "tiny") == tiny_config()
    assert {path.name for path in (tmp_path / "docs" / "images").iterdir()} == {"tiny-curves.png", "tiny-experts.png"}
    (finished / "model.safetensors").rename(finished / "small")
    (finished / "model.safetensors").write_bytes(bytes(ship.MAX_BYTES))
    with pytest.raises(CheckpointError, match="at most 3,000,000"):
        ship.ship(finished, package)
    (finished / "small").replace(finished / "model.safetensors")


def test_plots_are_drawn(finished: Path, tmp_path: Path) -> None:
    from ernie45.recipes.plots import expert_usage, plot_curves, plot_experts

    entries: list[dict[str, Any]] = [
        {"step": step, "stage": stage, "loss": 1 / (step + 1), "accuracy": step / 9}
        for step, stage in enumerate(["vision"] * 3 + ["joint"] * 3 + ["supervised"] * 3)
    ]
    plot_curves(entries, tmp_path / "curves.png")
    usage = expert_usage(finished, num_samples=20)
    assert set(usage) == {"text", "vision"}
    for share_LE in usage.values():
        assert share_LE.shape == (3, 8)
        assert share_LE.sum(1) == pytest.approx(1.0)
    plot_experts(usage, tmp_path / "experts.png")
    for name in ("curves.png", "experts.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
