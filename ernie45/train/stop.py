"""Stopping on request: Ctrl-C and SIGTERM end a run after a checkpoint.

Knows nothing about loops; they ask the flag.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Set by the first signal; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def on_signal(self, number: int, frame: Any) -> None:
        self._set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Ctrl-C and SIGTERM ask the loop to stop after a checkpoint instead of ending the program. Main thread only."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
