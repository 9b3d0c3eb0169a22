"""What a connection may do to us: send too much, leave early, read slowly.

Knows nothing about what is asked or answered.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ernie45.server.errors import ApiError

T = TypeVar("T")
_LEAST_BYTES_PER_S = 16_384  # what a body on a slow line comes with


class DisconnectedError(Exception):
    """The client has left; nobody is there to be told."""


async def read_body(request: Request, max_bytes: int, patience_s: float) -> bytes:
    """The body of a JSON request. ApiError 413 as soon as it is known to be too large, 415 for another content type.

    patience_s: how long it may take, beside what a slow line needs; then 408.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # Also keeps web pages of strangers out: a browser lets them send other types here without asking.
        message = f"Content-Type ({content_type!r}) must be application/json; set the header"
        raise ApiError(415, message, code="invalid_content_type")
    rule = f"the body must be at most {max_bytes} bytes; send smaller or fewer pictures, or their addresses"
    too_large = ApiError(413, rule, code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    num_bytes = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + patience_s
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), end + num_bytes / _LEAST_BYTES_PER_S - loop.time())
        except asyncio.TimeoutError:
            rule = f"the body ({num_bytes} bytes of it) did not come within {patience_s:g} s; send it at once"
            raise ApiError(408, rule, code="body_timeout") from None
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        chunks.append(message.get("body", b""))
        num_bytes += len(chunks[-1])
        if num_bytes > max_bytes:
            raise too_large
        if not message.get("more_body"):
            return b"".join(chunks)


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of the work; DisconnectedError, with the work cancelled, if the client leaves before.

    The body must have been read: after it, a disconnect is the only message left to come.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise DisconnectedError
    finally:
        for other in (task, watcher):
            other.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they come.

    close: called once, when all are sent, when the client has left, and also when nothing was ever sent.
    """

    def __init__(self, source: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.source = source
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        except DisconnectedError:
            pass
        finally:
            await self.source.aclose()
            await self.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self.source:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
