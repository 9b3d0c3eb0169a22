"""Servers as processes of their own, ours and transformers', and what they use: memory, CPU seconds, threads, files.

Knows nothing about requests or what is measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

SHIM = Path(__file__).parent / "torchvision_shim"
_START_S = 90.0


class Server:
    """A server on 127.0.0.1 that runs inside `with`. `name` says in errors whose it is; what it prints goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], port: int, ready: str, environment: dict[str, str] | None = None):
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command)
        self._ready = ready
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}

    def __enter__(self) -> "Server":
        self.log = Path(tempfile.mkstemp(prefix=f"bench-{self.name}-", suffix=".log")[1])
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        self.process = psutil.Process(self._process.pid)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is None:
            self.log.unlink(missing_ok=True)
        else:
            print(f"log of {self.name}: {self.log}", file=sys.stderr)

    def wait_ready(self, timeout_s: float = _START_S) -> None:
        """Return when it answers requests; AssertionError with the end of its log if it ends or takes too long."""
        end = time.monotonic() + timeout_s
        while not self.is_ready():
            in_time = self._process.poll() is None and time.monotonic() < end
            assert in_time, f"{self.name} is not ready:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._ready, timeout=5) as response:
                return response.status == 200
        except (OSError, urllib.error.HTTPError):
            return False

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    @property
    def engine(self) -> psutil.Process:
        """Our engine's process, a child of the server's."""
        found = [child for child in self.process.children() if "ernie45.server.engine_process" in child.cmdline()]
        assert len(found) == 1, found
        return found[0]

    def wait_idle(self, timeout_s: float = 20.0) -> dict[str, Any]:
        """What /load of our server says once nothing runs or waits; AssertionError if that takes too long."""
        end = time.monotonic() + timeout_s
        while True:
            load = self.get("/load")
            engine = load["engine"]
            if load["server_load"] == engine["num_running"] == engine["num_waiting"] == 0:
                time.sleep(0.5)  # what the engine says about itself is at most a quarter of a second old
                return self.get("/load")
            assert time.monotonic() < end, load
            time.sleep(0.1)


def our_server(model: str | Path, port: int, *flags: str) -> Server:
    """`ernie45 serve` with flags; quiet, as access logs are not what is measured."""
    return Server(
        "ernie45",
        [sys.executable, "-m", "ernie45.cli", "serve", str(model), "--port", str(port), "--quiet", *flags],
        port,
        "/ready",
    )


def peer_server(transformers: str, model: str | Path, port: int, *flags: str) -> Server:
    """`transformers serve`, its command given, with torchvision made importable (`torchvision_shim`)."""
    command = [transformers, "serve", str(model), "--device", "cpu", "--port", str(port), "--host", "127.0.0.1", *flags]
    return Server("transformers", command, port, "/health", {"PYTHONPATH": str(SHIM)})


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def resident_bytes(process: psutil.Process) -> int:
    return process.memory_info().rss
