"""Writes checkpoints while training goes on: when one is due, a thread for the file, and how many are kept.

Knows nothing about what a checkpoint holds.
"""

import threading
import time
from pathlib import Path
from typing import Any

from ernie45.config.train import LoopConfig
from ernie45.train.storage import save_checkpoint


class Saver:
    """One per run, on the process that writes. Leaving its context waits for the file.

    A write that fails is raised by the next call of `check`, `save` or `wait`; the checkpoint before it is whole.
    """

    def __init__(self, folder: Path, config: LoopConfig, step: int) -> None:
        """step: at which the run goes on, 0 if it begins."""
        self._folder, self._config = folder, config
        self._saved_at, self._saved_step = time.monotonic(), step
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is not None:
            self._thread.join()
        if error is None:
            self.check()

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be made after this step, counted from 0."""
        every = self._config.checkpoint_steps
        by_time = time.monotonic() - self._saved_at > self._config.checkpoint_seconds
        return by_time or (every > 0 and (step + 1) % every == 0)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state that nobody changes any more. Waits for the write before it, if that is not done."""
        self.wait()
        before, self._saved_step = self._saved_step, state["step"]
        self._thread = threading.Thread(target=self._write, args=(state, before), name="checkpoint")
        self._thread.start()
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Until the last checkpoint is on disk. StorageError if it is not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """StorageError if a write has failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: dict[str, Any], before: int) -> None:
        try:
            save_checkpoint(self._folder, state, keep=self._config.keep, step_before=before)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again where the run can end properly
            self._error = error
