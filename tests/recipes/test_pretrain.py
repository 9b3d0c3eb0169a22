"""Pretraining end to end, shortened to seconds: what each phase moves, birth, rope, going on, one pool, files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ernie45.checkpoint import load_model, read_config
from ernie45.config.errors import ConfigError
from ernie45.config.pretrain import PretrainConfig
from ernie45.recipes import pretrain
from ernie45.recipes.registry import BuildContext
from ernie45.recipes.runner import Request, describe, run
from ernie45.train.loop import Run, Trainer
from ernie45.train.phase import group_of
from ernie45.train.storage import read_metrics
from ernie45.train.workers import Workers

STEPS = {"text": 1, "tower": 1, "align": 1, "thaw": 1, "joint": 3, "long": 1}
SHORT = {"loop.num_shards": "1"}
for _name, _steps in STEPS.items():
    SHORT |= {f"phases.{_name}.schedule.num_steps": str(_steps), f"phases.{_name}.token_budget": "260"}
SHORT |= {"phases.long.context": "200", "phases.joint.picture_steps": "1"}


def request(out: Path, **changes: Any) -> Request:
    overrides = SHORT | changes.pop("overrides", {})
    return Request(**{"stage": "pretrain", "recipe": "tiny", "out": out, "overrides": overrides} | changes)


def trainer_of(config: PretrainConfig, folder: Path) -> Trainer:
    model, processor = pretrain.new_model(config)
    context = BuildContext(
        config=config,
        model=model,
        source=None,
        processor=processor,
        data=(),
        eval_data=(),
        folder=folder,
        workers=Workers(),
    )
    assembly = pretrain.build(context)
    return Trainer(assembly.modules, assembly.stages, config.loop, config.optim, Workers())


@pytest.fixture(scope="module")
def short() -> PretrainConfig:
    from ernie45.config.train import with_overrides

    return with_overrides(pretrain.tiny(), SHORT)


@pytest.fixture(scope="module")
def snapshots(short: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """All parameters and correction biases before the run and after each step."""
    trainer = trainer_of(short, tmp_path_factory.mktemp("run"))

    def snapshot() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in trainer.modules.state_dict().items()}

    found = [snapshot()]
    assert trainer.run(
        Run(folder=tmp_path_factory.mktemp("folder"), fingerprint="x", on_step=lambda _: found.append(snapshot()))
    )
    return found


def moved(snapshots: list[dict[str, torch.Tensor]], step: int) -> set[str]:
    """What changed in a step, counted over all phases; the tower and resampler that the small decoder shares once."""
    before, after = snapshots[step], snapshots[step + 1]
    shared = ("small.vision_model", "small.resampler")
    return {name for name in before if not torch.equal(before[name], after[name]) and not name.startswith(shared)}


def test_each_phase_moves_its_groups_alone(snapshots: list[dict[str, torch.Tensor]]) -> None:
    """Correction biases and gates are among what must stand still: a frozen router gets no upkeep."""
    for step, groups in enumerate([{"text"}, {"tower", "small"}, {"vision_mixed"}, {"vision_mixed", "tower"}]):
        names = moved(snapshots, step) - ({name for name in snapshots[0] if "resampler" in name} if step == 1 else set())
        assert {group_of(name) for name in names} == groups, step
    assert "model.layers.1.mlp.pools.text.router.correction_bias" in moved(snapshots, 0)
    assert "model.layers.1.mlp.pools.vision.router.correction_bias" in moved(snapshots, 2)


def test_joint_steps_of_text_let_vision_rest(snapshots: list[dict[str, torch.Tensor]]) -> None:
    """Step 4 is of text, step 5 of pictures, in which text learns, too."""
    assert {group_of(name) for name in moved(snapshots, 4)} == {"text"}
    assert {group_of(name) for name in moved(snapshots, 5)} == {"text", "vision_mixed", "tower"}


def test_vision_experts_are_born_at_the_first_step_of_align(snapshots: list[dict[str, torch.Tensor]]) -> None:
    """One small step after birth they are still next to their parents, and far from what they were."""
    name = "model.layers.1.mlp.pools.{}.gate_up_weight"
    parent = snapshots[2][name.format("text")].chunk(2, dim=1)
    slice_ = torch.cat([half[:, :32] for half in parent], dim=1)
    child, before = snapshots[3][name.format("vision")], snapshots[2][name.format("vision")]
    assert (child - slice_).norm() < 0.2 * (before - slice_).norm()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pre"
    assert run(request(out, overrides={"mtp_layers": "1"}))
    return out


def test_a_run_writes_a_model_with_the_raised_base_and_its_module(finished: Path) -> None:
    config = read_config(finished)
    assert (config.rope_theta, config.num_mtp_layers) == (400.0, 1)
    model = load_model(finished)
    assert model.mtp[0].linear_proj.weight.abs().sum() > 0
    entries = read_metrics(finished / "run")
    assert [entry["stage"] for entry in entries] == [name for name, steps in STEPS.items() for _ in range(steps)]
    assert all("mtp_loss" in entry for entry in entries if entry["stage"] == "joint")
    assert entries[2]["born_experts"] == 24
    assert {"loss.text", "loss.pictures"} & entries[4].keys() == {"loss.text"}
    assert entries[5]["lrs"].keys() == {"text", "vision_mixed", "tower"}
    assert (finished / "run" / "tensorboard").is_dir()
    before = (finished / "model.safetensors").read_bytes()
    assert run(request(finished, overrides={"mtp_layers": "1"})), "the same command again"
    assert read_config(finished).rope_theta == 400.0
    assert (finished / "model.safetensors").read_bytes() == before


def test_stopped_in_any_phase_it_goes_on_bit_for_bit(short: PretrainConfig, snapshots: list, tmp_path: Path) -> None:
    """Stopped before birth, after it, and within alternation."""
    for last in (1, 2, 4):
        trainer = trainer_of(short, tmp_path)
        stop: Callable[[], bool] = lambda trainer=trainer, last=last: trainer.step == last  # noqa: E731
        assert not trainer.run(Run(folder=tmp_path, fingerprint="x", stop_requested=stop))
    trainer = trainer_of(short, tmp_path)
    assert trainer.run(Run(folder=tmp_path, fingerprint="x"))
    final = trainer.modules.state_dict()
    assert [name for name in final if not torch.equal(final[name], snapshots[-1][name])] == []


def test_one_pool_is_written_as_two_alike_and_gives_the_same_states(short: PretrainConfig) -> None:
    config = replace(short, pools="one")
    model, _ = pretrain.new_model(config)
    (pool,) = model.config.expert_pools
    assert (pool.num_experts, pool.ffn_size, pool.num_active) == (16, 48, 2), "as many weights, as wide in the mean"
    two = pretrain.as_two_pools(model, width=64)
    assert [(pool.modality, pool.ffn_size) for pool in two.config.expert_pools] == [("text", 64), ("vision", 64)]
    stages = trainer_of(replace(config, phases=(short.phases[4],)), Path("unused")).stages
    batch = stages[0].batch(1, 0)
    assert batch.packed.vision is not None
    mine = stages[0].forward(nn.ModuleDict({"model": model}), batch).language.hidden_RD
    theirs = two(batch.packed).hidden_TD[batch.rows_R]
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_files_are_read_on_from_phase_to_phase(tmp_path: Path) -> None:
    """Documents of one's own, on the shipped model: text only, two phases, one global order."""
    file = tmp_path / "web.jsonl"
    file.write_text("".join(json.dumps({"text": f"What is {n}+{n}? {n + n}. " * 4}) + "\n" for n in range(60)))
    changes = {f"phases.{name}.enabled": "false" for name in ("text", "tower", "align", "thaw")}
    changes |= {"data.record_tokens": "64", "phases.long.context": "128", "phases.long.rope_theta": "0"}
    changes |= {f"phases.{name}.{kind}_steps": "0" for name in ("joint", "long") for kind in ("text", "picture")}
    asked = request(tmp_path / "out", model="tiny", data=(file,), overrides=changes)
    assert describe(asked)["corpus"]["documents"] == 60
    assert run(asked)
    entries = read_metrics(tmp_path / "out" / "run")
    assert [entry["tokens"] for entry in entries] == [64, 64, 64, 128]
    assert "loss.source.web" in entries[0]
    wants = replace(asked, overrides=asked.overrides | {"phases.joint.picture_steps": "1"}, out=tmp_path / "other")
    with pytest.raises(ConfigError, match="wants pictures, and the data files have none"):
        run(wants)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": {"phases.jiont.peak": "1"}}, "phases.NAME.FIELD, NAME one of text, tower"),
        ({"overrides": {"phases.joint.trains": "txt"}}, r"trains \('txt'\) fits no parameter"),
        ({"overrides": {"phases.joint.mixture": "read"}}, "mixture .*NAME=NUMBER"),
        ({"overrides": {"phases.joint.lr_ratios": "gates=0.1"}}, "lr_ratios .*one of trains"),
        ({"overrides": {"phases.long.context": "900"}}, "context .900. must be at most token_budget"),
        ({"overrides": {"pools": "one"}}, "births .* text and vision experts"),
        ({"overrides": {"pools": "one"}, "model": "tiny"}, "must stay as they are with --model"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(request(tmp_path / "out", **changes))
