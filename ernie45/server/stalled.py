"""Closes connections whose client keeps us waiting: half a request, or an answer that is not read.

Knows nothing about what is asked or answered. It looks at what uvicorn keeps of a connection, whichever parser it has.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

_log = logging.getLogger("ernie45.server")
_LOOKS = 4  # in the time that a client has
_LONGEST_PAUSE_S = 5.0


class StallWatch:
    """Over the connections of one uvicorn server, for one event loop.

    A client has `limit_s` to send a request's head, and as long between any two bytes that it reads of an answer. The body is
    watched where it is read (`connection.read_body`).
    """

    def __init__(self, connections: Collection[Any], limit_s: float) -> None:
        self._connections = connections
        self._limit_s = limit_s
        # What we wait for, and since when; only of those that we wait for.
        self._since: dict[Any, tuple[tuple[str, Any], float]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(min(self._limit_s / _LOOKS, _LONGEST_PAUSE_S))
            self._look(asyncio.get_running_loop().time())

    def _look(self, now: float) -> None:
        since, self._since = self._since, {}
        for connection in list(self._connections):
            awaited = _awaited(connection)
            if awaited is None:
                continue
            before = since.get(connection)
            began = before[1] if before is not None and before[0] == awaited else now
            self._since[connection] = awaited, began
            if now - began >= self._limit_s:
                _log.info("a client that does not %s was dropped after %g s", awaited[0], self._limit_s)
                connection.transport.abort()  # to close it would wait for what is not read


def _awaited(connection: Any) -> tuple[str, Any] | None:
    """What the client is to do next, with a mark that changes when it does something; None: it is our turn.

    While something may still be written, the buffer can grow as well as shrink and says nothing.
    """
    transport, cycle = connection.transport, connection.cycle
    idle = cycle is None or cycle.response_complete
    unread = transport.get_write_buffer_size()
    if unread and (idle or connection.flow.write_paused or transport.is_closing()):
        return "read", unread
    return ("ask", cycle) if idle else None
