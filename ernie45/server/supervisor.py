"""How an engine is started, watched and started again.

Knows nothing about requests or about what the engine does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ernie45.config.engine import EngineConfig
from ernie45.server.wire_socket import Connection


class Worker(Protocol):
    """An engine that was started."""

    def exit_reason(self) -> str | None:
        """How it ended; None while it lives."""
        ...

    def kill(self) -> None:
        """End it at once, if it still lives and can be ended from outside; does not wait for it to be gone."""
        ...


Launch = Callable[[Connection], Worker]


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When an engine that ended is started again.

    most        starts in a row without a stable time between them; one more failure ends the server.
    first_delay_s, longest_delay_s  the wait before a start doubles from the one to the other.
    stable_s    an engine that was ready for so long was no failure to start: the count begins anew.
    """

    most: int = 5
    first_delay_s: float = 0.25
    longest_delay_s: float = 30.0
    stable_s: float = 60.0

    def delay_s(self, restart: int) -> float:
        """Before the n-th start in a row, from 1."""
        return min(self.first_delay_s * 2 ** (restart - 1), self.longest_delay_s)


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """What an engine's process is told on its standard input: a line of JSON."""

    address: str
    identity: str
    folder: str
    config: EngineConfig
    verbose: bool
    log_json: bool = False
    log_details: bool = False


# oneDNN keeps compiled operations for each shape it has met, and PyTorch keeps its own list of them; every number of tokens in
# a step is a shape. With their default of 1,024 the shipped model's engine came to hold 600 MiB of these, and more with time;
# with 128 it is 130 MiB, steady, and as fast (bench/soak.py). Set either in the environment to have it otherwise.
_FEW_PRIMITIVES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


class EngineProcess:
    """A `Worker` that is a process of its own.

    Its standard input stays open as long as this process lives, whatever ends it: the engine ends when it closes. What the
    engine is told goes the same way, as arguments and environment can be read by others.
    """

    def __init__(self, order: EngineOrder, command: Sequence[str] = ("-m", "ernie45.server.engine_process")) -> None:
        # The same modules as here, and not those that happen to lie in the working folder.
        environment = {
            **_FEW_PRIMITIVES,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONSAFEPATH": "1",
        }
        self._process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(order, enc_hook=str) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already, which exit_reason tells

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_reason(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        if self._process.stdin is not None:
            self._process.stdin.close()
        return describe_exit(code)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()


def describe_exit(code: int) -> str:
    """One line about a process that ended unasked."""
    if code >= 0:
        return f"the engine's process ended with code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    hint = " (the machine may be out of memory)" if -code == signal.SIGKILL else ""
    return f"the engine's process was ended by {name}{hint}"


class Heartbeat:
    """Whether an engine that lives still answers.

    Any message is a sign of life. After a quarter of `timeout_s` without one it is asked; a whole `timeout_s` without an
    answer means that it hangs.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._heard = time.monotonic()
        self._asked: float | None = None

    def hear(self) -> None:
        """A message came."""
        self._heard = time.monotonic()
        self._asked = None

    def must_ask(self) -> bool:
        """Whether it is time to ask; the asking is noted."""
        now = time.monotonic()
        if self._asked is None and now - self._heard >= self.timeout_s / 4:
            self._asked = now
            return True
        return False

    @property
    def hangs(self) -> bool:
        return self._asked is not None and time.monotonic() - self._asked >= self.timeout_s
