"""A run's files: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
import torch

from ernie45.config.errors import CheckpointError, StorageError
from ernie45.train.storage import (
    CHECKPOINT,
    METRICS,
    MetricsLog,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
    write_atomically,
)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"step": 3, "values": torch.arange(4)})
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["values"], torch.arange(4))
    assert os.listdir(tmp_path) == [CHECKPOINT]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Wherever the disk runs full, the error is one line that says what to do, and the old checkpoint is whole."""
    save_checkpoint(tmp_path, {"step": 1})
    if broken == "write":
        monkeypatch.setattr("ernie45.train.storage.os.fdopen", lambda descriptor, mode: FullFile(descriptor))
    else:
        monkeypatch.setattr(f"ernie45.train.storage.os.{broken}", full_disk)
    with pytest.raises(StorageError, match=r"checkpoint.pt \([\d,]+ bytes\) cannot be written: No space left.*--out") as error:
        save_checkpoint(tmp_path, {"step": 2})
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert os.listdir(tmp_path) == [CHECKPOINT]


class FullFile:
    """A file on a disk that takes a few bytes and no more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def write(self, data: bytes) -> None:
        os.write(self._descriptor, data[:10])
        full_disk()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x", b"")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read.*--fresh"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_cut_short_is_an_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"values": torch.zeros(10000)})
    data = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_the_log_has_every_step_once_after_a_kill(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in range(6):
        log.write({"step": step, "loss": 0.5})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    resumed = MetricsLog(tmp_path, 4)
    resumed.write({"step": 4, "loss": 0.25})
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    assert read_metrics(tmp_path)[-1]["loss"] == 0.25


def test_a_full_disk_under_the_log_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, 0)
    monkeypatch.setattr(Path, "open", full_disk)
    with pytest.raises(StorageError, match="cannot be written"):
        log.write({"step": 0})
