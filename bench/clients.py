"""A bare HTTP client that costs little beside what it measures: one connection a request, times of events, nothing parsed.

Knows nothing about servers' processes or what is measured.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

_LIMIT = 2**24  # of one line


@dataclass
class Reply:
    """What came back. status 0: the connection ended before there was one. ended: to its end.

    times: when each event with content came, of time.perf_counter; began: when the request was sent.
    """

    status: int = 0
    began: float = 0.0
    times: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    ended: bool = False
    body: bytes = b""

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.ended and not self.error

    @property
    def ttft(self) -> float:
        return self.times[0] - self.began

    @property
    def num_tokens(self) -> int:
        return (self.last.get("usage") or {}).get("completion_tokens", 0)


def encode(path: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def post(
    port: int, path: str, body: dict[str, Any], *, leave_after: int | None = None, into: Reply | None = None
) -> Reply:
    """Send a request and read its answer to the end, stream or not.

    leave_after: close the connection after so many events; 0: at once.  into: the reply to write, so that others can watch it.
    """
    reply = into or Reply()
    reply.began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)
    except OSError as error:
        reply.error = str(error)
        return reply
    try:
        writer.write(encode(path, body))
        await writer.drain()
        if leave_after != 0:
            await _read(reader, reply, leave_after)
    except (OSError, asyncio.IncompleteReadError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    finally:
        writer.close()
    return reply


async def _read(reader: asyncio.StreamReader, reply: Reply, leave_after: int | None) -> None:
    first = await reader.readline()
    reply.status = int(first.split()[1]) if first else 0
    stream = False
    while (line := await reader.readline()) not in (b"\r\n", b""):
        stream |= line.lower().startswith(b"content-type: text/event-stream")
    if not stream:
        reply.body = await reader.read()
        reply.times.append(time.perf_counter())
        reply.ended = True
        if reply.body.startswith(b"{"):
            reply.last = json.loads(reply.body)
        return
    last = b""
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            reply.ended = True
            break
        if line.startswith(b'data: {"error"'):
            reply.error = line.decode(errors="replace")
        if b'"choices":[]' not in line:
            reply.times.append(time.perf_counter())
        last = line
        if leave_after is not None and len(reply.times) >= leave_after:
            return
    if last:
        reply.last = json.loads(last.removeprefix(b"data: "))
