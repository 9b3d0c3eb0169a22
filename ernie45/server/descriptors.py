"""File descriptors, of which each connection takes one: as many as may be had, and few words when there are none left.

Knows nothing about connections.
"""

import asyncio
import errno
import logging
import resource
from contextlib import suppress
from typing import Any

_log = logging.getLogger("ernie45.server")
_MOST = 2**16
_SAY_EVERY_S = 10.0


def raise_limit() -> None:
    """To what the system allows without asking: the usual 1,024 are meant for programs that cannot handle more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LoopErrors:
    """Handler for what goes wrong in an event loop outside of any task.

    Where no descriptor is left, asyncio reports each of thousands of tries to take a connection, with its trace: megabytes of
    log a second, for as long as somebody holds connections.
    """

    def __init__(self) -> None:
        self._said_at: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
            return
        if self._said_at is None or loop.time() - self._said_at >= _SAY_EVERY_S:
            self._said_at = loop.time()
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            _log.error("no file descriptor is left (%d): new connections wait until others end; see ulimit -n", most)
