"""The files of a run: the checkpoint, written whole or not at all, and the log of metrics.

Knows nothing about what a checkpoint holds.
"""

import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ernie45.config.errors import CheckpointError, StorageError

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


def write_atomically(path: Path, data: bytes) -> None:
    """Put data at path so that at every moment the old file or the new one is there, whole. StorageError if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are for their owner alone, and a model is for everyone who may read the folder.
        name = path.with_name(f".{path.name}.{os.getpid()}.part")
        descriptor = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} ({len(data):,} bytes) cannot be written: {error.strerror or error}; "
            "free space or choose another folder with --out, then run the same command again"
        ) from error


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int = 1, step_before: int = 0) -> None:
    """Replace the folder's checkpoint. StorageError leaves the one before.

    keep: how many to have in the end; those before the last are `checkpoint-STEP.pt`. step_before: of the one replaced.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / CHECKPOINT
    if keep > 1 and path.exists():
        _keep_as(path, folder / f"checkpoint-{step_before:08d}.pt")
    write_atomically(path, buffer.getvalue())
    for old in kept_checkpoints(folder)[keep - 1 :]:
        old.unlink(missing_ok=True)


def kept_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints before the last, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _keep_as(path: Path, other: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        write_atomically(other, path.read_bytes())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None. CheckpointError for a file that is not one of ours."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        older = kept_checkpoints(folder)
        way_out = (
            f"rename {older[0].name} to {CHECKPOINT}, or start afresh with --fresh" if older else "start afresh with --fresh"
        )
        raise CheckpointError(f"checkpoint ({path}) cannot be read: {reason}; {way_out}") from error


class MetricsLog:
    """One JSON object a line, appended. On resuming, lines past the checkpoint are cut, so every step is there once."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: counted over all stages; entries from it on are dropped."""
        self._path = folder / METRICS
        kept = [entry for entry in read_metrics(folder) if entry.get("step", -1) < first_step]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def write(self, entry: dict[str, Any]) -> None:
        """StorageError if the disk is full."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}; free space, then run again") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All entries; a line cut short by a kill is left out."""
    path = folder / METRICS
    entries = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
    return entries
