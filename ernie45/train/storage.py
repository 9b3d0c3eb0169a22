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


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint. StorageError leaves the one before."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None. CheckpointError for a file that is not one of ours."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint ({path}) cannot be read: {reason}; start afresh with --fresh") from error


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
