"""A function's results made ahead in worker processes, given out in the order in which they are asked for.

Knows nothing about records, batches or models.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from ernie45.config.errors import Ernie45Error

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")


class WorkerEndedError(Ernie45Error):
    """A worker process has died."""


class Loader(Generic[Task, Result]):
    """Runs a pure function of a task: here (no workers), or ahead of time in processes of their own.

    So the number of workers changes nothing but speed. At most `ahead` results are under way or waiting to be taken; more are
    begun only when one is taken. wait_seconds: how long callers have waited in all.
    """

    def __init__(self, work: Callable[[Task], Result], workers: int = 0, ahead: int = 4) -> None:
        """work: must be picklable, if there are workers, as must tasks and results."""
        self._work, self._workers, self._ahead = work, workers, ahead
        self._pool = _Pool(work, workers) if workers else None
        self._under_way: dict[Task, Future[Result]] = {}
        self.wait_seconds = 0.0

    def __call__(self, task: Task, upcoming: Iterable[Task] = ()) -> Result:
        """The result of a task. upcoming: those that will be asked for next; what was begun for others is dropped.

        Raises what the function raises; WorkerEndedError if a worker has died.
        """
        started = time.perf_counter()
        try:
            if self._pool is None:
                return self._work(task)
            wanted = self._wanted(task, upcoming)
            for old in [known for known in self._under_way if known not in wanted]:
                self._under_way.pop(old).cancel()
            for new in wanted:
                if new not in self._under_way:
                    self._under_way[new] = self._pool.submit(new)
            return self._under_way.pop(task).result()
        finally:
            self.wait_seconds += time.perf_counter() - started

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The results of all tasks in order, worked on ahead."""
        rest = list(tasks)
        for place, task in enumerate(rest):
            yield self(task, rest[place + 1 : place + 1 + self._ahead])

    def close(self) -> None:
        """End the workers; what they are doing is dropped."""
        for future in self._under_way.values():
            future.cancel()
        self._under_way.clear()
        if self._pool is not None:
            self._pool.close()

    @property
    def pids(self) -> list[int]:
        """Of the workers that have been started."""
        return [] if self._pool is None else self._pool.pids

    def _wanted(self, task: Task, upcoming: Iterable[Task]) -> dict[Task, None]:
        wanted = {task: None}
        for new in upcoming:
            if len(wanted) > self._ahead:
                break
            wanted[new] = None
        return wanted

    def __enter__(self) -> "Loader[Task, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pool:
    """Worker processes, each led by a thread that hands it one task after the other."""

    def __init__(self, work: Callable[[Any], Any], workers: int) -> None:
        self._payload = pickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ernie45-data")
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [process.pid for process in self._processes]

    def submit(self, task: Any) -> "Future[Any]":
        return self._threads.submit(self._run, task)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for process in self._processes:
            process.kill()  # they hold nothing that could be lost
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what could not be written to it before
                        pipe.close()
            process.wait()

    def _run(self, task: Any) -> Any:
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(task, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            good, result = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError, ValueError) as error:
            code = process.wait()
            cause = f"exit code {code}" if code != -9 else "killed, perhaps for lack of memory"
            raise WorkerEndedError(
                f"a data worker ended ({cause}); run the same command again to go on, with a smaller data.workers or "
                "data.prefetch, or data.workers=0 to see what happens"
            ) from error
        if not good:
            raise result
        return result

    def _process(self) -> "subprocess.Popen[bytes]":
        """This thread's worker, started when it is first needed."""
        process = getattr(self._own, "process", None)
        if process is not None:
            return process
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "ernie45.data.worker"]
        with self._lock:
            if self._closed:
                raise WorkerEndedError("the data workers are closed; make a new loader")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._processes.append(process)
        self._own.process = process
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it ended at once: the first task says so
            process.stdin.write(self._payload)
        return process
