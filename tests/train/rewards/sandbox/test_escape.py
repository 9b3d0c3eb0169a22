"""Attempts to escape: each must be denied, or see nothing, whatever the user of this process may do."""

import os
import sys
import time
from pathlib import Path

import pytest

from ernie45.config.errors import ConfigError
from ernie45.train.rewards.sandbox import confine
from ernie45.train.rewards.sandbox.run import Limits, Ran, check_sandbox, run_program, run_tests

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
LIMITS = Limits(cpu=1, wall=120.0, memory=128)


def run(code: str, stdin: str = "", limits: Limits = LIMITS) -> Ran:
    return run_program(code, stdin, limits)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that anyone may read and write."""
    path = tmp_path_factory.mktemp("home") / "secret.txt"
    path.write_text("the expected answer is 4711")
    path.chmod(0o666)
    return path


# Each line must raise OSError; what does not is printed. SECRET and PARENT are put in.
DENIED = """
import ctypes, os, pathlib, signal, socket, subprocess, sys, threading, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "denied")
tries = [
    lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    lambda: socket.socketpair(),
    lambda: socket.create_connection(("127.0.0.1", 22), 1),
    lambda: call(425, 8, ctypes.create_string_buffer(256)),  # io_uring_setup
    lambda: os.fork(),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: os.execv(sys.executable or "/bin/sh", ["sh"]),
    lambda: subprocess.run(["ls"]),
    lambda: call(56, 17, 0, 0, 0, 0),  # clone with SIGCHLD
    lambda: call(56, 0x10000000 | 0x10000, 0, 0, 0, 0),  # a thread in a new user namespace
    lambda: call(435, ctypes.create_string_buffer(88), 88),  # clone3
    lambda: call(272, 0x10000000),  # unshare
    lambda: os.kill(PARENT, 0),
    lambda: os.kill(PARENT, signal.SIGKILL),
    lambda: os.kill(0, signal.SIGTERM),
    lambda: os.kill(-1, 0),
    lambda: os.killpg(0, 0),
    lambda: call(234, PARENT, PARENT, 9),  # tgkill
    lambda: call(200, PARENT, 9),  # tkill
    lambda: call(424, 0, 9, None, 0),  # pidfd_send_signal
    lambda: call(434, PARENT, 0),  # pidfd_open
    lambda: call(101, 16, PARENT, 0, 0),  # ptrace attach
    lambda: call(310, PARENT, None, 0, None, 0, 0),  # process_vm_readv
    lambda: call(311, PARENT, None, 0, None, 0, 0),  # process_vm_writev
    lambda: call(72, 1, 8, PARENT),  # fcntl F_SETOWN
    lambda: open("/etc/passwd").read(),
    lambda: open("/etc/hostname").read(),
    lambda: open(f"/proc/{PARENT}/mem", "rb"),
    lambda: open(f"/proc/{PARENT}/cmdline", "rb"),
    lambda: open(f"/proc/{PARENT}/environ", "rb"),
    lambda: open("/proc/self/maps"),
    lambda: os.listdir(f"/proc/{PARENT}/fd"),
    lambda: open("/dev/mem", "rb"),
    lambda: open("/sys/kernel/uevent_helper"),
    lambda: os.listdir(os.path.expanduser("~root")),
    lambda: os.listdir("/"),
    lambda: os.listdir("/tmp"),
    lambda: open(SECRET).read(),
    lambda: open(SECRET, "w"),
    lambda: open(SECRET, "a"),
    lambda: os.open(SECRET, os.O_RDONLY | os.O_TRUNC),
    lambda: os.open(SECRET, 3 | os.O_TRUNC),
    lambda: os.truncate(SECRET, 0),
    lambda: os.unlink(SECRET),
    lambda: os.rename(SECRET, "stolen"),
    lambda: os.link(SECRET, "stolen"),
    lambda: os.symlink(SECRET, "stolen"),
    lambda: os.chmod(SECRET, 0),
    lambda: os.chown(SECRET, 1, 1),
    lambda: os.utime(SECRET, (0, 0)),
    lambda: open(pathlib.Path(SECRET).parent / "new", "w"),
    lambda: open("../new", "w"),
    lambda: os.mkdir("folder"),
    lambda: os.mkfifo("pipe"),
    lambda: os.chdir("/"),
    lambda: os.chroot("."),
    lambda: os.memfd_create("x"),
    lambda: open("/dev/shm/x", "w"),
    lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_CPU, (100, 100)),
    lambda: os.nice(-5),
    lambda: os.setuid(1),
    lambda: libc.prctl(4, 1, 0, 0, 0) and call(157, 4, 1),  # prctl
    lambda: call(165, None, None, None, 0, None),  # mount
    lambda: call(321, 0, None, 0),  # bpf
    lambda: call(298, None, 0, -1, -1, 0),  # perf_event_open
    lambda: call(437, -100, b"/etc/passwd", ctypes.create_string_buffer(24), 24),  # openat2
]
for number, attempt in enumerate(tries):
    try:
        print("NOT DENIED", number, attempt())
    except (OSError, PermissionError, ValueError) as error:
        if isinstance(error, ValueError) and "limit" not in str(error):
            print("other error", number, error)
print(len(tries), "tried", sorted(os.environ), sorted(os.listdir(".")), os.getppid() > 0)
"""


def test_attempts_on_files_network_and_processes_are_denied(secret: Path) -> None:
    before = secret.stat()
    ran = run(f"SECRET, PARENT = {str(secret)!r}, {os.getpid()}\n{DENIED}")
    assert ran.stdout == f"{DENIED.count('    lambda: ')} tried ['LC_CTYPE'] [] True\n" or ran.stdout.endswith(
        " tried [] [] True\n"
    )
    assert "NOT DENIED" not in ran.stdout
    assert (ran.ended, ran.code) == ("exit", 0), ran.stderr
    assert secret.read_text() == "the expected answer is 4711"
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret.txt"]


def test_other_numbers_of_calls_end_the_program() -> None:
    """The 32-bit entrance and the x32 numbers would go by the filter's list."""
    x32 = run("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39); print('alive')")
    assert (x32.stdout, x32.code) == ("", -31)  # SIGSYS


@pytest.mark.parametrize(
    ("code", "ended", "says"),
    [
        ("import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass", "cpu", ""),
        ("x = bytearray(10**9)", "exit", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "exit", "MemoryError"),
        ("while True: print('x' * 1000)", "exit", "File too large"),
        ("open('big', 'w').write('x' * 2**21)", "exit", "File too large"),
        ("import os\nwhile True: os.fork()", "exit", "Operation not permitted"),
        ("import time\nfor n in range(99999): open(str(n), 'w')\ntime.sleep(9)", "files", ""),
        ("files = [open('x', 'w') for _ in range(99)]", "exit", "Too many open files"),
        ("import threading, time\nfor _ in range(50): threading.Thread(target=time.sleep, args=(9,)).start()", "threads", ""),
        ("import os\nos.kill(os.getpid(), 9)", "cpu", ""),
    ],
)
def test_what_runs_over_is_ended(code: str, ended: str, says: str) -> None:
    # Threads have stacks of 8 MiB, files are many at once: room for both, so that the watch is what ends these.
    limits = Limits(cpu=1, wall=120.0, memory=1024) if ended == "threads" else LIMITS
    ran = run(code if ended != "files" else code.replace("open(str(n), 'w')", "open(str(n), 'w').close()"), limits=limits)
    assert ran.ended == ended
    assert ran.code != 0
    assert says in ran.stderr
    assert len(ran.stdout) <= 2**20


def test_sleeping_for_ever_ends_in_time() -> None:
    start = time.monotonic()
    ran = run("import time\nprint('asleep', flush=True)\ntime.sleep(1000)", limits=Limits(cpu=1, wall=1.0))
    assert ran.ended in ("wall", "starved")
    assert ran.ended == "starved" or ran.stdout == "asleep\n"
    assert time.monotonic() - start < 10


def test_folders_and_processes_are_gone_afterwards() -> None:
    ran = run("import os\nopen('a', 'w').write('x')\nprint(os.getpid(), os.getcwd())")
    pid, folder = ran.stdout.split()
    assert not Path(folder).exists()
    assert not Path(f"/proc/{pid}").exists()


def test_usual_programs_run() -> None:
    """Standard library, input, threads with large stacks, files of one's own, signals to oneself."""
    code = """
import bisect, collections, decimal, hashlib, heapq, itertools, json, math, random, re, sqlite3, sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**25)
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
def main():
    n, *rest = map(int, sys.stdin.read().split())
    open("scratch", "w").write(str(sum(rest)))
    print(open("scratch").read(), deep(5000), hashlib.sha256(b"").hexdigest()[:4], random.random() < 1, "语")
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""
    ran = run(code, "3\n1 2 3\n", Limits(cpu=2, wall=120.0))
    assert (ran.ended, ran.code, ran.stdout) == ("exit", 0, "6 5000 e3b0 True 语\n"), ran.stderr


CHEATS = """
import os, sys
class Yes:
    def __eq__(self, other): return True
    def __sub__(self, other): return 0
    def __lt__(self, other): return True
def always(x): return Yes()
def leave(x): sys.exit(0)
def vanish(x): os._exit(0)
class Int(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def number(x): return Int(5)
def abs(x): return 0
class math:
    isclose = staticmethod(lambda *_: True)
def right(x): return x + 1
def sort(x): x.sort()
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def __len__(self): return len(self.items)
def bad(x): raise ValueError("no")
def look(x):
    import gc
    frame, found = sys._getframe(), []
    while frame: found.append(str(frame.f_locals)); frame = frame.f_back
    found += [str(o) for o in gc.get_objects() if isinstance(o, (str, dict, list))]
    return "".join(["quo", "kka"]) in "".join(found)
"""
TESTS = {
    "assert right(1) == 2": "passed",
    "assert right(1) == 3": "failed",
    "assert always(1) == 4": "failed",
    "assert abs(always(1) - 4) < 1": "failed",
    "assert number(1) == 4": "failed",
    "assert abs(number(1) - 4) < 0.5": "failed",
    "assert math.isclose(number(1), 4)": "failed",
    "assert leave(1) == 4": "failed",
    "x = [2, 1]\nsort(x)\nassert x == [1, 2]": "passed",
    "s = Stack()\ns.push(4)\nassert len(s) == 1 and s.items == [4]": "passed",
    "try:\n    bad(1)\nexcept ValueError:\n    pass\nelse:\n    assert False": "passed",
    "assert candidate(2) == 3": "passed",
    "def check(f):\n    assert f(1.5) == 2.5\ncheck(right)": "passed",
    "assert not look(1) and 'quokka'": "passed",
    "assert right(lambda: 1)": "unsupported",
    "assert missing(1) == 1": "failed",
    "assert vanish(1) == 4": "failed",
    "assert right(1) == 2  # behind the end": "failed",
}


def test_tests_by_assert_cannot_be_bent() -> None:
    """The program sees arguments, never expected values, and its objects decide nothing."""
    verdicts, ran = run_tests(CHEATS, list(TESTS), Limits(cpu=3, wall=120.0), candidate="right")
    assert dict(zip(TESTS, [verdict.split(":")[0] for verdict in verdicts], strict=True)) == TESTS
    assert ran.ended == "exit"


def test_a_program_that_does_not_even_start_passes_nothing() -> None:
    for code in ("import sys\nsys.exit(0)", "raise SystemExit", "1/0"):
        assert run_tests(code, ["assert True", "assert f(1) == 1"], LIMITS)[0][1].startswith("failed")
    verdicts, ran = run_tests("while True: pass", ["assert f(1) == 1"], LIMITS)
    assert verdicts[0].startswith("failed")
    assert ran.ended == "cpu"


def test_where_it_cannot_hold_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sandbox()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="not on linux on riscv64"):
        check_sandbox()
    monkeypatch.undo()
    monkeypatch.setattr("ernie45.train.rewards.sandbox.run._LIBRARIES", ("/nowhere",))
    monkeypatch.setattr("ernie45.train.rewards.sandbox.run._readable", lambda: [("/nowhere", False)])
    with pytest.raises(ConfigError, match="cannot confine programs here .*No such file"):
        check_sandbox()


def test_the_kernel_is_new_enough_for_these_tests() -> None:
    assert confine.landlock_version() >= 1
