"""What a person sees while training: a moving bar in a terminal, a plain line now and then elsewhere.

Knows nothing about training; it is told every step's entry.
"""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0


class Progress:
    """A context; `show` takes entries of the metrics log."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._console = Console()
        self._shown_at = -PLAIN_SECONDS
        self._stage = ""
        self._bar: RichProgress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=self._console)
            self._task = self._bar.add_task("starting", total=num_steps)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, entry: dict[str, Any]) -> None:
        """Update the bar, or print a line every ten seconds, at a new stage and at the end."""
        step = entry["step"] + 1
        text = f"{entry['stage']:<10} loss {entry['loss']:.3f}  accuracy {entry['accuracy']:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        now = time.monotonic()
        if now - self._shown_at < PLAIN_SECONDS and entry["stage"] == self._stage and step < self._num_steps:
            return
        self._shown_at, self._stage = now, entry["stage"]
        sys.stdout.write(f"step {step}/{self._num_steps}  {text}\n")
        sys.stdout.flush()
