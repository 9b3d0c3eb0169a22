"""The server's side of the boundary: asyncio streams over an engine that runs in a thread of its own.

Knows nothing about HTTP or text. What crosses is in `messages`; only `start` and `_send` know that it is a thread.
"""

import asyncio
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.server.engine_loop import Engine, run_engine
from ernie45.server.messages import Abort, Accepted, Capacity, Command, Dead, Generate, Ready, Refused, Report, Stop, Tokens

EngineState = Literal["loading", "ready", "dead"]


class EngineDeadError(RuntimeError):
    """The engine ended while a request needed it; not the user's fault."""


class EngineClient:
    """Sends requests to an engine and hands each its tokens. All methods belong to one event loop."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        """load: makes the engine; called in the engine's thread."""
        self._load = load
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Accepted | Tokens | Refused | Dead]] = {}
        self._thread: threading.Thread | None = None
        self._loaded = asyncio.Event()
        self._dead = asyncio.Event()
        self.state: EngineState = "loading"
        self.capacity: Capacity | None = None
        self.death: Dead | None = None

    def start(self) -> None:
        """Start the engine's thread; call it once, inside the event loop."""
        loop = asyncio.get_running_loop()

        def send(report: Report) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._receive, report)

        self._thread = threading.Thread(
            target=run_engine, args=(self._load, self._inbox, send), name="ernie45-engine", daemon=True
        )
        self._thread.start()

    async def wait_loaded(self) -> None:
        """Return when the engine is ready or dead."""
        await self._loaded.wait()

    async def wait_dead(self) -> None:
        """Return when the engine has ended, for whatever reason."""
        await self._dead.wait()

    @property
    def num_requests(self) -> int:
        """Requests at work or waiting in the engine."""
        return len(self._streams)

    async def generate(
        self,
        prompt: ModelInput,
        params: SamplingParams,
        *,
        priority: int = 0,
        adapter: str | None = None,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[Accepted | Tokens, None]:
        """First Accepted, then the tokens of one request as they come; closing the generator early aborts it.

        RequestError if the engine refuses it, EngineDeadError if the engine ends before it does.
        """
        if self.state == "dead":
            raise EngineDeadError(self.death.message if self.death else "stopped")
        request_id = uuid.uuid4().hex
        inbox = self._streams[request_id] = asyncio.Queue()
        finished = False
        self._inbox.put(
            Generate(
                request_id=request_id, prompt=prompt, params=params, priority=priority, adapter=adapter, cache_salt=cache_salt
            )
        )
        try:
            while not finished:
                report = await inbox.get()
                match report:
                    case Accepted():
                        yield report
                    case Tokens():
                        finished = report.finish_reason is not None
                        yield report
                    case Refused(message=message):
                        finished = True
                        raise RequestError(message)
                    case Dead(message=message):
                        finished = True
                        raise EngineDeadError(message)
        finally:
            del self._streams[request_id]
            if not finished:
                self._inbox.put(Abort(request_id=request_id))

    def end_streams(self, message: str) -> None:
        """End every running request with an EngineDeadError of this message."""
        for stream in self._streams.values():
            stream.put_nowait(Dead(message=message, cause="stopped"))

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop the engine; whether its thread ended in time."""
        if self._thread is None:
            return True
        self._inbox.put(Stop())
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _receive(self, report: Report) -> None:
        match report:
            case Ready(capacity=capacity):
                self.state, self.capacity = "ready", capacity
                self._loaded.set()
            case Dead(message=message):
                self.state, self.death = "dead", report
                self._loaded.set()
                self._dead.set()
                self.end_streams(message)
            case Accepted(request_id=request_id) | Tokens(request_id=request_id) | Refused(request_id=request_id):
                if request_id in self._streams:  # else it was aborted while this report was on its way
                    self._streams[request_id].put_nowait(report)
