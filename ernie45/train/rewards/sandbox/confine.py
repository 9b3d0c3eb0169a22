"""Takes from the process it runs in, for good: other files, the network, other processes, more than a measure of everything.

Knows nothing about programs or tests. Runs inside of the sandboxed interpreter, so it imports the standard library alone.
Linux on x86-64; sources: landlock(7), seccomp(2), <linux/landlock.h>, <linux/seccomp.h>, <linux/filter.h>.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Iterable, Mapping

# Rights of Landlock on files, by bit.
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
# By version of the interface, how many rights the kernel knows; later versions add no more.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38
_AUDIT_ARCH_X86_64, _X32 = 0xC000003E, 0x40000000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06

# System calls that are let through whatever their arguments are: on memory, on descriptors that are open already, on files
# (which Landlock guards), on time, signals and threads of one's own. All others fail with EPERM.
_ALLOWED = """
    0 read  1 write  3 close  4 stat  5 fstat  6 lstat  7 poll  8 lseek  9 mmap  10 mprotect  11 munmap  12 brk
    13 rt_sigaction  14 rt_sigprocmask  15 rt_sigreturn  17 pread64  18 pwrite64  19 readv  20 writev  21 access  22 pipe
    23 select  24 sched_yield  25 mremap  28 madvise  32 dup  33 dup2  34 pause  35 nanosleep  36 getitimer  37 alarm
    38 setitimer  39 getpid  60 exit  63 uname  74 fsync  75 fdatasync  77 ftruncate  79 getcwd  82 rename  87 unlink
    89 readlink  95 umask  96 gettimeofday  97 getrlimit  98 getrusage  99 sysinfo  100 times  102 getuid  104 getgid
    107 geteuid  108 getegid  110 getppid  111 getpgrp  131 sigaltstack  186 gettid  201 time  202 futex
    204 sched_getaffinity  217 getdents64  218 set_tid_address  219 restart_syscall  228 clock_gettime  229 clock_getres
    230 clock_nanosleep  231 exit_group  232 epoll_wait  233 epoll_ctl  262 newfstatat  263 unlinkat  264 renameat
    267 readlinkat  269 faccessat  270 pselect6  271 ppoll  273 set_robust_list  281 epoll_pwait  291 epoll_create1  292 dup3
    293 pipe2  309 getcpu  316 renameat2  318 getrandom  324 membarrier  332 statx  334 rseq  436 close_range  439 faccessat2
"""
_NEW_THREAD = 0x003D0F00  # the flags of clone() with which glibc starts a thread, and nothing else
_IOCTLS = (0x5401, 0x5450, 0x5451)  # TCGETS (is it a terminal?), FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN: it aims signals


class CannotConfine(OSError):
    """The kernel has not what it takes, or forbids it."""


def enter(folder: str, readable: Iterable[tuple[str, bool]], limits: Mapping[str, int]) -> None:
    """Confine the calling process, which must have one thread. Nothing undoes it.

    folder: where files may be made and changed, not folders. readable: (path, whether only its names may be listed).
    limits: cpu_seconds, memory_bytes, file_bytes (of each file), open_files. CannotConfine if any part does not hold.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _set_limits(limits)
    _call(libc.prctl, _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call(libc.prctl, _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _forbid_files(libc, folder, readable)
    _forbid_calls(libc)


def landlock_version() -> int:
    """Of the kernel's interface; 0 if there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _set_limits(limits: Mapping[str, int]) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        # A program may catch the signal of the soft limit of time; a second later comes one that it cannot catch.
        resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU else value))


def _forbid_files(libc: ctypes.CDLL, folder: str, readable: Iterable[tuple[str, bool]]) -> None:
    version = landlock_version()
    if version < 1:
        raise CannotConfine(errno.ENOSYS, "the kernel has no Landlock, or it is switched off")
    handled = (1 << _RIGHTS[min(version, max(_RIGHTS))]) - 1
    attributes = struct.pack("=Q", handled)
    ruleset = _call(libc.syscall, _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    own = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
    _allow_below(libc, ruleset, folder, own & handled)
    for path, names_only in readable:
        is_folder = os.path.isdir(path)
        rights = _READ_DIR if names_only else _READ_FILE | (_READ_DIR if is_folder else 0)
        _allow_below(libc, ruleset, path, rights)
    _call(libc.syscall, _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow_below(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(libc.syscall, _ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _forbid_calls(libc: ctypes.CDLL) -> None:
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(os.getpid()))
    code = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    whole = Filter(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    _call(libc.prctl, _SET_SECCOMP, 2, ctypes.byref(whole), 0, 0)


def _filter(own_pid: int) -> list[tuple[int, int, int, int]]:
    """The filter's instructions: (code, jump if true, jump if false, value). A jump of n skips n instructions."""
    found = [
        (_LOAD, 0, 0, 4),  # the architecture: numbers mean other calls in other ones
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the call's number
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in map(int, _ALLOWED.split()[::2]):
        found += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, argument, values in (
        (16, 1, _IOCTLS),
        (72, 1, _FCNTLS),
        (56, 0, (_NEW_THREAD,)),
        (62, 0, (own_pid,)),  # kill
        (234, 0, (own_pid,)),  # tgkill
    ):
        found += _if_call(number, _one_of(argument, values))
    # Opening to read and emptying the file by the way (O_TRUNC) is a write that old versions of Landlock do not see.
    found += _if_call(2, _not_emptied_by_reading(1)) + _if_call(257, _not_emptied_by_reading(2))
    # Limits may be read, not set: both halves of the pointer to new ones must be null.
    found += _if_call(302, [(_LOAD, 0, 0, 32), (_EQUAL, 0, 3, 0), (_LOAD, 0, 0, 36), (_EQUAL, 0, 1, 0), *_ALLOW_ELSE_NOT])
    # "Not there" makes the C library fall back to calls with arguments that a filter can see.
    for number in (435, 437):  # clone3, openat2
        found += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    return [*found, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


_ALLOW_ELSE_NOT = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _if_call(number: int, block: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """The block, which returns in every case, for one call."""
    return [(_EQUAL, 0, len(block), number), *block]


def _one_of(argument: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Allow if the argument's lower half (the kernel takes no more of these) is one of the values."""
    checks = [
        (_EQUAL, len(values) - place - 1, 0 if place < len(values) - 1 else 1, value) for place, value in enumerate(values)
    ]
    return [(_LOAD, 0, 0, 16 + 8 * argument), *checks, *_ALLOW_ELSE_NOT]


def _not_emptied_by_reading(argument: int) -> list[tuple[int, int, int, int]]:
    # Access mode 3 (neither reading nor writing, but ioctl) asks Landlock for no right either.
    return [
        (_LOAD, 0, 0, 16 + 8 * argument),
        (_AND, 0, 0, os.O_TRUNC | os.O_ACCMODE),
        (_EQUAL, 2, 0, os.O_TRUNC | os.O_RDONLY),
        (_EQUAL, 1, 0, os.O_TRUNC | 3),
        *_ALLOW_ELSE_NOT,
    ]


def _call(function: object, *arguments: object) -> int:
    result = function(*arguments)  # type: ignore[operator]
    if result < 0:
        number = ctypes.get_errno()
        raise CannotConfine(number, os.strerror(number))
    return result
