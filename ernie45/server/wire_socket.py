"""The two ends of the socket between server and engine: a private ipc file, or a port of this machine.

Knows nothing about what the frames mean. The server's end listens; an engine is let in by the identity it was started with.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.asyncio

from ernie45.config.errors import ConfigError
from ernie45.server.wire import Frame

# Above the largest report there can be (log-probabilities of a whole long prompt), below what hurts.
_MAX_MESSAGE_BYTES = 1 << 28
# What is not sent this long after a close is dropped.
_LINGER_MS = 1000
# A path of a Unix socket has at most 107 bytes.
_LONGEST_FOLDER = 70


class Connection(NamedTuple):
    """Where an engine connects to, and the secret name by which the server knows it."""

    address: str
    identity: str


class ServerSocket:
    """The server's end. One event loop uses it."""

    def __init__(self, port: int | None = None) -> None:
        """port: listen there on 127.0.0.1 instead of in a private folder. ConfigError if it cannot be had."""
        self._folder: Path | None = None
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        # No limit on messages: a router drops what is above its limit. What bounds them is the number of requests.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        if port is None:
            short = len(tempfile.gettempdir()) <= _LONGEST_FOLDER
            self._folder = Path(tempfile.mkdtemp(prefix="ernie45-", dir=None if short else "/tmp"))  # mode 0700
            self.address = f"ipc://{self._folder}/engine"
        else:
            self.address = f"tcp://127.0.0.1:{port or '*'}"
        try:
            self._socket.bind(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"engine_port ({port}) cannot be had: {error.strerror}; stop what uses it, or choose another with "
                "--engine-worker-queue-port"
            ) from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def receive(self) -> tuple[str, list[Frame]]:
        """The next message and the identity of its sender."""
        identity, *frames = await self._socket.recv_multipart(copy=False)
        return bytes(identity.buffer).decode(errors="replace"), [frame.buffer for frame in frames]

    def send(self, identity: str, frames: Sequence[Frame]) -> None:
        """Never waits. Dropped if that engine is gone."""
        self._socket.send_multipart([identity.encode(), *frames], copy=False)

    def close(self) -> None:
        """Close and remove the folder; may be called again."""
        if not self._socket.closed:
            self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class EngineSocket:
    """The engine's end. One thread uses it."""

    def __init__(self, connection: Connection) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt_string(zmq.IDENTITY, connection.identity)
        self._socket.connect(connection.address)

    def receive(self, wait: bool) -> list[Frame] | None:
        """The next message. None without `wait` if none is there."""
        try:
            return [frame.buffer for frame in self._socket.recv_multipart(0 if wait else zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            return None

    def send(self, frames: Sequence[Frame]) -> None:
        """Never waits for the other side to read."""
        self._socket.send_multipart(list(frames), copy=False)

    def close(self) -> None:
        """Send what is under way, for a bounded time."""
        self._socket.close()
        self._context.term()
