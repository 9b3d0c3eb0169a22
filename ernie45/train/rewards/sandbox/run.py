"""Starts a program in the sandbox, watches over it, and reads what came of it.

Knows nothing about rewards.

Threat model. The program is Python text that a model wrote; it is taken to be hostile, and to know this code. It runs in an
interpreter of its own that has given up its rights before the first foreign line (`confine`), as any user, without root or
namespaces. What holds, by Landlock, a seccomp filter that names what is allowed, and resource limits:

- network: no socket of any kind can be made;
- files: readable are Python's standard library (not its site-packages) and the system's shared libraries; nothing of /etc,
  /proc, /sys, /dev, home, this project or other sandboxes. Writable is one empty temporary folder, without folders in it, that
  is deleted afterwards. It may learn that a path exists and how large a file is, not what is in it. Modes, owners and times of
  files cannot be changed, links not made;
- processes: none can be started (fork, exec), signalled, traced or read, the trainer included; threads can, up to a number;
- environment and descriptors: empty environment; descriptors of its own input and output only;
- measure: CPU time, wall time, memory, size of each file and of each output, number of files, open files, threads. What runs
  over is killed, with everything of its session; it also dies with the thread that started it;
- right answers: never in the process of the program, and not in its arguments or files. Outputs are compared by the trainer;
  tests with `assert` run in a second sandbox that calls the program's functions across a pipe, and gets copies of plain data.

What does not hold: bugs of the kernel and timing side channels (this is no virtual machine); the short time between two looks
of the watch (20 ms), in which limits on files and threads may be overrun; and a program may guess what is asked, like any
answer.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from ernie45.config.errors import ConfigError

_HERE = Path(__file__).parent
_LOOK_SECONDS = 0.02
_START = f"import sys; sys.path.insert(0, {str(_HERE)!r}); import inside; inside.main()"
# Where shared libraries lie, and the list of them.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use up. cpu: seconds of all its threads, whole ones; wall: seconds; memory and file (of each file
    and output): MiB; files: in its folder; threads: at a time."""

    cpu: int = 5
    wall: float = 20.0
    memory: int = 512
    file: int = 1
    files: int = 16
    threads: int = 8

    def __post_init__(self) -> None:
        for name in ("cpu", "wall", "memory", "file", "files", "threads"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) of the sandbox must be above 0")
        if self.memory < 64:
            raise ConfigError(
                f"memory ({self.memory}) of the sandbox must be at least 64 MiB: the interpreter takes half of it"
            )


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of a program. ended: "exit" with its code, or the limit it was killed for: cpu, wall, files, threads; "starved"
    is wall time that it spent waiting for a processor: the machine's fault. stdout and stderr: as far as they go."""

    ended: str
    code: int
    stdout: str
    stderr: str


class SandboxFailed(OSError):
    """The confinement did not hold, so nothing was run."""


def check_sandbox() -> None:
    """ConfigError if programs cannot be confined here; says why. Tries it out on a program that attempts to escape."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ConfigError(
            f"the code sandbox runs on Linux on x86-64, not on {sys.platform} on {platform.machine()}: it stands on Landlock "
            "and seccomp; train where these are, or leave the reward code out"
        )
    try:
        ran = run_program(_PROBE, "", Limits(wall=120.0))
    except OSError as error:
        raise ConfigError(
            f"the code sandbox cannot confine programs here ({error}); it needs Linux 5.13 or later with Landlock and seccomp, "
            "also inside of a container; or leave the reward code out"
        ) from error
    if ran.ended == "starved":
        raise ConfigError("the code sandbox could not be tried: the machine has no processor time to spare; try again")
    if ran.stdout != "confined\n":
        raise ConfigError(
            f"the code sandbox does not hold here: {(ran.stdout + ran.stderr).strip()[:300]}; leave the reward code out"
        )


# Each of these must fail; prints what did not.
_PROBE = """
import os, socket, subprocess
tries = {
    "a socket was opened": lambda: socket.socket(),
    "a process was started": lambda: os.fork() or os._exit(0),
    "a program was executed": lambda: os.execv("/bin/true", ["true"]),
    "/etc/passwd was read": lambda: open("/etc/passwd").read(),
    "/proc was read": lambda: open("/proc/self/status").read(),
    "the parent was signalled": lambda: os.kill(os.getppid(), 0),
    "a file was made elsewhere": lambda: open("../outside", "w"),
}
escaped = []
for what, attempt in tries.items():
    try:
        attempt()
        escaped.append(what)
    except OSError:
        pass
print(", ".join(escaped) or "confined")
"""


def run_program(code: str, stdin: str, limits: Limits) -> Ran:
    """Run a whole program on an input. SandboxFailed, or another OSError, if it could not be run as it must."""
    with ExitStack() as stack:
        process = _Process(stack, {"mode": "program", "code": code}, limits, stdin)
        _watch([process], limits, until=process)
        return process.ran()


def run_tests(code: str, tests: Sequence[str], limits: Limits, candidate: str = "") -> tuple[list[str], Ran]:
    """Verdicts of tests on a program's functions: "passed", "failed: why" or "unsupported: why"; and what came of the program.

    Each test is a Python text, run with fresh names of its own; the program's names that it uses are proxies (`plain`), and
    `candidate` is the one of that name. Limits hold for each of the two processes. SandboxFailed as above; "starved" in `Ran`
    if either was.
    """
    with ExitStack() as stack:
        result = _temporary(stack)
        with ExitStack() as ends:
            asked_read, asked_write = _pipe(ends)
            told_read, told_write = _pipe(ends)
            program = _Process(stack, {"mode": "answer", "code": code, "asked": asked_read, "told": told_write}, limits)
            task = {"mode": "checker", "tests": list(tests), "candidate": candidate, "result": result.fileno()}
            checker = _Process(stack, {**task, "asked": asked_write, "told": told_read}, limits)
        _watch([program, checker], limits, until=checker)
        ran, checked = program.ran(), checker.ran()
        result.seek(0)
        verdicts = [json.loads(line) for line in result.read().decode().splitlines()]
    if checked.ended == "starved":
        ran = checked
    why = f"failed: the tests were ended ({checked.ended}, code {checked.code})"
    return [*verdicts, *[why] * (len(tests) - len(verdicts))], ran


class _Process:
    """One sandboxed interpreter with its folder, input and outputs."""

    def __init__(self, stack: ExitStack, task: dict[str, Any], limits: Limits, stdin: str = "") -> None:
        """Start it. `stack` takes care that nothing of it outlives the run."""
        self.folder = tempfile.mkdtemp(prefix="ernie45-sandbox-")
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        stdin_file, task_file, self._out, self._err = (_temporary(stack) for _ in range(4))
        self._status, status = os.pipe()
        stack.callback(os.close, self._status)
        whole = {**task, "folder": self.folder, "readable": _readable(), "status": status, "limits": _as_numbers(limits)}
        for file, text in ((stdin_file, stdin), (task_file, json.dumps(whole))):
            file.write(text.encode("utf-8", "replace"))
            file.seek(0)
        descriptors = [task[name] for name in ("asked", "told", "result") if name in task]
        try:
            self._process = subprocess.Popen(
                [_interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", _START, str(task_file.fileno())],
                stdin=stdin_file,
                stdout=self._out,
                stderr=self._err,
                env={},
                cwd=self.folder,
                pass_fds=(task_file.fileno(), status, *descriptors),
                start_new_session=True,
            )
        finally:
            os.close(status)
        stack.callback(self.kill)
        self._ended = ""
        self._started = time.monotonic()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def over(self, limits: Limits) -> str:
        """Which limit, of those that only the watch sees, is overrun; "" if none."""
        try:
            if len(os.listdir(self.folder)) > limits.files:
                return "files"
            if len(os.listdir(f"/proc/{self._process.pid}/task")) > limits.threads:
                return "threads"
        except OSError:
            pass  # it has ended
        return ""

    def end(self, why: str) -> None:
        """Kill it for a reason."""
        self._ended = "starved" if why == "wall" and self._was_starved() else why
        self.kill()

    def kill(self) -> None:
        """Kill the session's processes, whatever state they are in."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def ran(self) -> Ran:
        """After it has ended. SandboxFailed if the confinement did not hold."""
        told = os.read(self._status, 200)
        stdout, stderr = _text(self._out), _text(self._err)
        code = self._process.wait()
        if told != b"\x01" and not self._ended:
            raise SandboxFailed(told.decode("utf-8", "replace") or f"the interpreter did not start: {stderr.strip()[-200:]}")
        cpu = code in (-signal.SIGXCPU, -signal.SIGKILL)
        return Ran(ended=self._ended or ("cpu" if cpu else "exit"), code=code, stdout=stdout, stderr=stderr)

    def _was_starved(self) -> bool:
        """Whether a thread of it waited for a processor, ready to run, half of its time or more; True if that is not known."""
        try:
            threads = [path.read_text().split() for path in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")]
        except OSError:
            return True
        waits = [int(thread[1]) for thread in threads if len(thread) == 3]
        return not waits or max(waits) > (time.monotonic() - self._started) * 1e9 / 2


def _watch(processes: Sequence[_Process], limits: Limits, until: _Process) -> None:
    """Return when `until` has ended, by itself or by a limit; all others are killed then."""
    start = time.monotonic()
    for pause in _pauses():
        if not until.running:
            break
        time.sleep(pause)
        if time.monotonic() - start > limits.wall:
            for process in processes:
                process.end("wall")
        for process in processes:
            why = process.over(limits) if process.running else ""
            if why:
                process.end(why)
    for process in processes:
        if process.running:
            process.end("exit")


def _pauses() -> Iterator[float]:
    """Short looks first: most programs end at once."""
    pause = 0.002
    while True:
        yield pause
        pause = min(_LOOK_SECONDS, 1.5 * pause)


def _pipe(stack: ExitStack) -> tuple[int, int]:
    """Both ends, open until the stack ends."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def _temporary(stack: ExitStack) -> Any:
    """A file without a name: gone when it is closed."""
    return stack.enter_context(tempfile.TemporaryFile())


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _as_numbers(limits: Limits) -> dict[str, int]:
    return {
        "cpu_seconds": limits.cpu,
        "memory_bytes": limits.memory * _MIB,
        "file_bytes": limits.file * _MIB,
        "open_files": 32,
    }


@cache
def _interpreter() -> str:
    """The one that a virtual environment stands on."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _readable() -> list[tuple[str, bool]]:
    """(path, whether only names may be listed) of the standard library without site-packages, and of shared libraries."""
    found: list[tuple[str, bool]] = []
    for folder in {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}:
        found.append((folder, True))
        found += [(entry.path, False) for entry in os.scandir(folder) if entry.name not in ("site-packages", "dist-packages")]
    base = os.path.realpath(sys.base_prefix)
    found += [(str(path), False) for path in Path(base, "lib").glob("*.so*")]
    return found + [(path, False) for path in _LIBRARIES if os.path.exists(path)]
