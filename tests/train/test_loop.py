"""The loop: the split of a step does not matter, and a run that was cut goes on bit for bit."""

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig
from ernie45.data.packing import LanguageBatch, collate, token_balanced_weights
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import Mixture
from ernie45.data.tiny.strips import StripWriter
from ernie45.model.multimodal import ErnieModel
from ernie45.train.loop import Run, Trainer
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.stage import Stage
from ernie45.train.storage import load_checkpoint, read_metrics
from ernie45.train.workers import Workers
from tests.train.conftest import small_config

PROGRAM = Path(__file__).with_name("small_run.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def load_program() -> Any:
    spec = importlib.util.spec_from_file_location("small_run", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small_run() -> Any:
    return load_program()


@pytest.fixture(scope="module")
def uninterrupted(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of one process, never stopped."""
    trainer = small_run.trainer(Workers())
    assert trainer.run(Run(folder=tmp_path_factory.mktemp("whole"), fingerprint="small"))
    return trainer.state_dict()


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths of tensors and numbers that are not bit for bit equal."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), (path, one.keys() ^ other.keys())
        return [line for key in one for line in differences(one[key], other[key], f"{path}/{key}")]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [path]


def test_stopping_and_going_on_changes_no_bit(small_run: Any, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the first stage, in the second, and in the second again, each time by a fresh trainer."""
    for last_step in (1, 5, 8):
        trainer = small_run.trainer(Workers())
        steps: list[int] = []
        run = Run(
            folder=tmp_path,
            fingerprint="small",
            stop_requested=lambda trainer=trainer, last=last_step: trainer.step == last,
            on_step=lambda entry, steps=steps: steps.append(entry["step"]),
        )
        assert not trainer.run(run)
        assert steps[-1] == last_step
    trainer = small_run.trainer(Workers())
    assert trainer.run(Run(folder=tmp_path, fingerprint="small"))
    assert differences(trainer.state_dict(), uninterrupted) == []


def test_another_configs_checkpoint_is_refused(small_run: Any, tmp_path: Path) -> None:
    trainer = small_run.trainer(Workers())
    trainer.run(Run(folder=tmp_path, fingerprint="one", stop_requested=lambda: True))
    with pytest.raises(CheckpointError, match="other settings.*--fresh"):
        small_run.trainer(Workers()).run(Run(folder=tmp_path, fingerprint="another"))


def test_stages_train_what_they_say(small_run: Any, tmp_path: Path) -> None:
    trainer = small_run.trainer(Workers())
    before = trainer.optimizer.flat.state_dict()
    trainer.run(Run(folder=tmp_path, fingerprint="small", stop_requested=lambda: trainer.step == 2))
    after = trainer.optimizer.flat.state_dict()
    for name in before:
        vision = "vision_model" in name or "resampler" in name or name.startswith("head")
        assert torch.equal(before[name], after[name]) != vision, name


@pytest.mark.slow
def test_two_processes_killed_and_gone_on_are_the_uninterrupted_run(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """1 two gloo processes equal one up to rounding; 2 kill -9 leaves no process; 3 going on is bit for bit the whole run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = subprocess.Popen([sys.executable, PROGRAM, whole, "2"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    victim = subprocess.Popen([sys.executable, PROGRAM, cut, "2", "6"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    for line in victim.stdout:
        if line.strip() == "7":
            break
    children = _children(victim.pid)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    checkpoint = load_checkpoint(cut)
    assert checkpoint is not None
    assert 0 < checkpoint["step"] <= 8
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert children
    subprocess.run([sys.executable, PROGRAM, cut, "2"], env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=60)
    assert not [pid for pid in children if _is_running(pid)]

    expected, resumed = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, cut))
    assert differences(resumed, expected) == []
    assert [entry["step"] for entry in read_metrics(cut)] == [entry["step"] for entry in read_metrics(whole)]
    for name, value in expected["parameters"].items():
        assert torch.allclose(value, uninterrupted["parameters"][name], atol=2e-4), name
    for name, value in expected["biases"].items():
        assert torch.allclose(value, uninterrupted["biases"][name], atol=1e-6), name


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _is_running(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def split_trainer(num_shards: int, processor: Any) -> Trainer:
    """Language alone; eight sequences a step, the same for every split."""
    mixture = Mixture(StripWriter(training_digits("fit")), {"read": 1.0, "arithmetic": 1.0})
    encoder = SampleEncoder(processor)

    def batch(step: int, shard: int) -> LanguageBatch:
        rng = Random(step)
        items = [encoder.encode(mixture.draw(rng), thinking=False) for _ in range(8)][shard::num_shards]
        return collate(items, token_balanced_weights(items, 400), 1 / num_shards)

    model = ErnieModel(small_config())
    model.init_weights(torch.Generator().manual_seed(0))
    stage = Stage(
        name="language",
        schedule=ScheduleConfig(num_steps=6, warmup_steps=0),
        batch=batch,
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=RouterConfig(aux_weight=0, z_weight=0),
        routers=RouterConfig(),
    )
    config = LoopConfig(num_shards=num_shards, processes=1)
    return Trainer(nn.ModuleDict({"model": model}), [stage], config, OptimConfig(lr=0.02), Workers())


def test_one_shard_or_eight_are_the_same_run(processor: Any, tmp_path: Path) -> None:
    """Losses, norms and loads to 2e-5 in fp32."""
    entries: dict[int, list[dict[str, Any]]] = {1: [], 8: []}
    for num_shards, told in entries.items():
        trainer = split_trainer(num_shards, processor)
        trainer.run(Run(folder=tmp_path / str(num_shards), fingerprint=None, on_step=told.append))
    for whole, split in zip(entries[1], entries[8], strict=True):
        for name in ("loss", "accuracy", "grad_norm", "text_violation", "vision_violation", "tokens"):
            assert split[name] == pytest.approx(whole[name], abs=2e-5), (whole["step"], name)


def test_bf16_follows_fp32(small_run: Any, tmp_path: Path) -> None:
    """Twelve steps from the same start: losses within 0.05 of about 5; masters are fp32, and so are gates."""
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, found in losses.items():
        trainer = small_run.trainer(Workers(), precision=precision)
        trainer.run(Run(folder=tmp_path / precision, fingerprint=None, on_step=lambda e, found=found: found.append(e["loss"])))
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)
    assert losses["bf16"] != losses["fp32"]
    dtypes = {name: parameter.dtype for name, parameter in trainer.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "router" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "router" not in name} == {torch.bfloat16}
    assert {value.dtype for value in trainer.state_dict()["parameters"].values()} == {torch.float32}


def test_an_average_that_no_stage_keeps_cannot_be_exported(processor: Any) -> None:
    trainer = split_trainer(1, processor)
    config = replace(trainer.config, export_average=True)
    with pytest.raises(ConfigError, match="loop.export_average.*needs a stage that keeps an average"):
        Trainer(trainer.modules, trainer.stages, config, OptimConfig(), Workers())


def test_stages_that_need_whole_weights_are_not_sharded(processor: Any) -> None:
    trainer = split_trainer(2, processor)
    stages = [replace(trainer.stages[0], before_step=lambda step: {})]
    config = replace(trainer.config, shard="full", processes=2)
    with pytest.raises(ConfigError, match="loop.shard .'full'. cannot be used.*loop.shard=none"):
        Trainer(trainer.modules, stages, config, OptimConfig(), Workers(0, 2))
