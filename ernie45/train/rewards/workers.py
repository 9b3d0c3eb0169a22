"""Judges that are functions run in worker processes: what hangs is killed, and what crashes takes nothing with it.

Knows nothing about what the functions do, except that they take a `Graded` and options and return a number.
"""

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import ernie45
from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded, Score, text_of
from ernie45.train.rewards.reward import Reward

_START_SECONDS = 120.0


class Worker:
    """One process, started when it is first asked, again after it was killed or died."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, item: Graded, options: Mapping[str, Any], seconds: float) -> Score:
        """The function's score. Events: timeout (the process is killed), worker_died, and what the function raised."""
        task = {"item": _plain(item), "options": dict(options), "seconds": seconds}
        try:
            answer = self._exchange(task, seconds)
        except TimeoutError:
            self.stop()
            return Score.failed("timeout", f"{self._target} took more than {seconds:g} s")
        except OSError as error:
            self.stop()
            return Score.failed("worker_died", f"{self._target}: {error}")
        if "event" in answer:
            return Score.failed(answer["event"], answer["detail"])
        return Score(value=answer["value"])

    def start(self) -> None:
        """ConfigError if the function cannot be loaded."""
        command = [sys.executable, "-m", "ernie45.train.rewards.worker_main", self._target]
        path = os.pathsep.join([str(Path(ernie45.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=env, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            first = self._read(_START_SECONDS)
        except OSError as error:
            self.stop()
            raise ConfigError(f"reward function ({self._target}) did not start: {error}") from error
        if "event" in first:
            self.stop()
            raise ConfigError(f"reward function ({self._target}) cannot be loaded: {first['event']}: {first['detail']}")

    def stop(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _exchange(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._process is None:
            self.start()
        assert self._process is not None, self._target
        assert self._process.stdin is not None, self._target
        self._process.stdin.write(json.dumps(task, default=str).encode() + b"\n")
        self._process.stdin.flush()
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None, self._target
        assert self._process.stdout is not None, self._target
        # One short line for each task, written at once: what is readable is whole.
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError(f"no answer for {seconds:g} s")
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise OSError(f"the process ended with code {self._process.wait()}")
        return json.loads(line)


class WorkerPool:
    """Workers with one function between them; not for several threads at a time."""

    def __init__(self, target: str, num_workers: int) -> None:
        self._workers = [Worker(target) for _ in range(num_workers)]
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def judge(self, batch: Sequence[Graded], options: Mapping[str, Any], seconds: float) -> list[Score]:
        """Scores in order; `seconds` for each answer."""

        def one(item: Graded) -> Score:
            worker = self._free.get()
            try:
                return worker.ask(item, options, seconds)
            finally:
                self._free.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(threads.map(one, batch))

    def start(self) -> None:
        """Start one worker, to see that the function is there; the others start when they are needed."""
        self._workers[0].start()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


@dataclass(frozen=True, kw_only=True)
class Pooled(Reward):
    """A judge that is a function in worker processes. timeout: seconds an answer. workers: processes."""

    timeout: float = 10.0
    workers: int = 2
    pool: WorkerPool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.workers < 1:
            raise ConfigError(f"timeout ({self.timeout}) must be above 0 and workers ({self.workers}) at least 1")
        object.__setattr__(self, "pool", WorkerPool(self.target(), self.workers))

    def target(self) -> str:
        """The function, as "module:name"."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """What the function gets beside the answer."""
        return {}

    def start(self) -> None:
        self.pool.start()

    def close(self) -> None:
        self.pool.close()

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        return self.pool.judge(batch, self.options(), self.timeout)


@dataclass(frozen=True, kw_only=True)
class Regex(Pooled):
    """1 if the pattern (Python's `re`, the dot also for line ends) is found in the answer, else 0."""

    pattern: str = ""
    timeout: float = 1.0
    workers: int = 1

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"pattern ({self.pattern!r}) of reward regex cannot be read: {error}") from error
        if not self.pattern:
            raise ConfigError("pattern ('') of reward regex must not be empty, as in regex(pattern=\"^[0-9]+$\")")
        super().__post_init__()

    def target(self) -> str:
        return "ernie45.train.rewards.shape:search"

    def options(self) -> dict[str, Any]:
        return {"pattern": self.pattern}


@dataclass(frozen=True, kw_only=True)
class Function(Pooled):
    """One's own judge: at="path/to/file.py:name" or "module:name", a function from a `Graded` to a number.

    It sees pictures as no part of the messages. What it raises is an event; `raise Unscored(kind, detail)` names its own.
    thoughts: whether it sees them.
    """

    at: str = ""
    thoughts: bool = False
    sees_thoughts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        place, _, name = self.at.rpartition(":")
        if not place or not name.isidentifier():
            raise ConfigError(f"at ({self.at!r}) of reward function must be file.py:name or module:name")
        super().__post_init__()

    def target(self) -> str:
        return self.at

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        return super().judge(batch if self.thoughts else [item.without_thoughts() for item in batch])


def _plain(item: Graded) -> dict[str, Any]:
    """As JSON takes it: messages as texts."""
    messages = [{"role": message.get("role"), "content": text_of(message)} for message in item.messages]
    return asdict(replace(item, messages=messages))
