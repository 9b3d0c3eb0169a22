"""What a run does when something breaks: numbers, losses, disks."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie45.config.errors import Ernie45Error, StorageError
from ernie45.config.train import LoopConfig
from ernie45.train import saver as saver_module
from ernie45.train.guard import Guard
from ernie45.train.loop import Run
from ernie45.train.saver import Saver
from ernie45.train.storage import kept_checkpoints, load_checkpoint, read_metrics
from ernie45.train.workers import Workers
from tests.train.test_loop import differences, load_program

LANGUAGE = 3  # first step of the second stage


def broken_trainer(factors: dict[int, float], **settings: Any) -> Any:
    """The small run, whose loss is multiplied in some steps of the second stage."""
    trainer = load_program().trainer(Workers(), **settings)
    stage = trainer.stages[1]

    def objective(outputs: Any, batch: Any, config: Any) -> Any:
        loss = stage.objective(outputs, batch, config)
        return loss._replace(loss=loss.loss * factors.get(trainer.step, 1.0))

    trainer.stages[1] = replace(stage, objective=objective)
    return trainer


def learnt(trainer: Any) -> dict[str, Any]:
    state = trainer.state_dict()
    return {name: state[name] for name in ("parameters", "optimizer", "average", "biases", "step")}


@pytest.mark.parametrize(("step", "factor", "why"), [(7, float("nan"), "loss is nan"), (10, 1e3, "is above")])
def test_a_broken_step_is_left_out_and_the_run_says_so(tmp_path: Path, step: int, factor: float, why: str) -> None:
    """NaN: its gradient never touches the weights. Spike: back to the checkpoint after step 8, on without step 10."""
    settings = {"spike_mads": 20.0, "spike_window": 8, "checkpoint_steps": 8}
    trainer = broken_trainer({step: factor}, **settings)
    said: list[str] = []
    assert trainer.run(Run(folder=tmp_path / "broken", fingerprint=None, say=said.append))
    assert why in said[0]
    assert f"goes on from step {7 if step == 7 else 8}" in said[0]
    entries = read_metrics(tmp_path / "broken")
    assert [entry["step"] for entry in entries] == list(range(12))
    assert [entry["step"] for entry in entries if entry.get("skipped")] == [step]
    assert why in entries[step]["why"]

    expected = broken_trainer({}, **settings)
    expected.skipped = {step: "asked for"}
    expected.run(Run(folder=tmp_path / "whole", fingerprint=None))
    assert differences(learnt(trainer), learnt(expected)) == []
    state = load_checkpoint(tmp_path / "broken")
    assert state is not None
    assert list(state["skipped"]) == [step]


def test_weights_that_are_no_numbers_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    trainer = broken_trainer({}, checkpoint_steps=5)

    def on_step(entry: dict[str, Any]) -> None:
        if entry["step"] == 6 and 7 not in trainer.skipped:
            trainer.optimizer.flat.values.fill_(float("nan"))

    said: list[str] = []
    assert trainer.run(Run(folder=tmp_path, fingerprint=None, on_step=on_step, say=said.append))
    assert "step 7" in said[0]
    assert "goes on from step 5" in said[0]
    assert torch.isfinite(trainer.optimizer.flat.values).all()


def test_too_many_broken_steps_end_the_run_with_a_reason(tmp_path: Path) -> None:
    trainer = broken_trainer(dict.fromkeys(range(4, 12), float("inf")), max_skips=2)
    with pytest.raises(Ernie45Error, match="step 6: no number: loss is inf; 2 steps were left out before.*loop.max_skips"):
        trainer.run(Run(folder=tmp_path, fingerprint=None, say=lambda text: None))


def test_spikes_are_judged_by_median_and_deviation() -> None:
    guard = Guard(mads=5, window=8)
    for loss in (4.0, 4.1, 3.9, 4.0):
        assert guard.fault("a", loss, 1.0) is None
    assert guard.fault("a", 4.2, 1.0) is None  # median 4, deviations 0 0 0.1 0.1
    assert "loss 4.51 is above 4.5 (median 4 + 5 x 0.1)" in str(guard.fault("a", 4.51, 1.0))  # and now 0.2 among them
    assert guard.fault("b", 40.0, 1.0) is None, "another stage has another scale"
    assert "gradient norm is inf" in str(guard.fault("b", 1.0, float("inf")))
    assert Guard(mads=0, window=8).fault("a", 1e9, 1.0) is None


def test_a_disk_that_runs_full_ends_the_run_and_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = broken_trainer({})
    expected.run(Run(folder=tmp_path / "whole", fingerprint=None))
    trainer = broken_trainer({}, checkpoint_steps=2)

    def on_step(entry: dict[str, Any]) -> None:
        if entry["step"] == 4:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr("ernie45.train.storage.os.fsync", full)

    with pytest.raises(StorageError, match="cannot be written: No space left.*run the same command again"):
        trainer.run(Run(folder=tmp_path / "cut", fingerprint=None, on_step=on_step))
    monkeypatch.undo()
    state = load_checkpoint(tmp_path / "cut")
    assert state is not None
    assert state["step"] == 4
    again = broken_trainer({})
    assert again.run(Run(folder=tmp_path / "cut", fingerprint=None))
    assert differences(learnt(again), learnt(expected)) == []
    assert [entry["step"] for entry in read_metrics(tmp_path / "cut")] == list(range(12))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` is back while the file is not there; the next one waits for it."""
    may_write, written = threading.Event(), []

    def slow(folder: Path, state: dict[str, Any], **_: Any) -> None:
        assert may_write.wait(timeout=30)
        written.append(state["step"])

    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    with Saver(tmp_path, LoopConfig(checkpoint_seconds=1e9, checkpoint_steps=3), step=0) as saver:
        assert [step for step in range(9) if saver.due(step)] == [2, 5, 8]
        saver.save({"step": 3})
        assert written == []
        may_write.set()
        saver.save({"step": 6})
    assert written == [3, 6]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer = broken_trainer({}, checkpoint_steps=2, keep=3)
    trainer.run(Run(folder=tmp_path, fingerprint=None))
    assert [path.name for path in kept_checkpoints(tmp_path)] == ["checkpoint-00000010.pt", "checkpoint-00000008.pt"]
    assert [torch.load(path, weights_only=True)["step"] for path in kept_checkpoints(tmp_path)] == [10, 8]
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(Ernie45Error, match="rename checkpoint-00000010.pt to checkpoint.pt"):
        load_checkpoint(tmp_path)
