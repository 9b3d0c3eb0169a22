"""The server's side of the boundary: asyncio streams over an engine in a process of its own, which is watched.

Knows nothing about HTTP or text. What crosses is in `messages`; how an engine is started is the `Launch` it is given.
"""

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator
from typing import Literal

from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.server.messages import (
    Abort,
    Accepted,
    Capacity,
    Command,
    Dead,
    Generate,
    Ping,
    Pong,
    Ready,
    Refused,
    Report,
    Stats,
    Step,
    Stop,
    Tokens,
)
from ernie45.server.request_stream import RequestStream
from ernie45.server.supervisor import Heartbeat, Launch, RestartPolicy, Worker
from ernie45.server.wire import Frame, MessageDecoder, WireError, encode
from ernie45.server.wire_socket import Connection, ServerSocket

EngineState = Literal["loading", "ready", "restarting", "dead"]

_log = logging.getLogger("ernie45.server")
_WATCH_EVERY_S = 0.1
# An engine that said it has ended has this long to do so.
_EXIT_WAIT_S = 5.0
_DEFAULT_TIMEOUT_S = 300.0


class EngineDeadError(RuntimeError):
    """The engine ended while a request needed it; not the user's fault."""


class EngineClient:
    """Sends requests to an engine and hands each its tokens. All methods belong to one event loop.

    state         loading; ready; restarting (it ended and is started again); dead (it is not).
    capacity      what it can hold, once it is ready.
    stats         its latest word on how it does; None before the first, and from its end to the first of the next one.
    death         how it ended for good.
    num_restarts  how often it was started again.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        port: int | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        restarts: RestartPolicy | None = None,
    ) -> None:
        """Listens at once; ConfigError if it cannot.

        launch: starts an engine.  port: of 127.0.0.1, instead of a private ipc file.
        timeout_s: an engine that does not answer so long is killed and started again.
        """
        self._launch = launch
        self._socket = ServerSocket(port)
        self._decoder = MessageDecoder(Ready, Accepted, Step, Stats, Pong, Refused, Dead)
        self._restarts = restarts or RestartPolicy()
        self._heartbeat = Heartbeat(timeout_s)
        self._streams: dict[str, RequestStream] = {}
        self._identity = ""
        self._worker: Worker | None = None
        self._last_report: Dead | None = None
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = asyncio.Event()
        self._dead = asyncio.Event()
        self.state: EngineState = "loading"
        self.capacity: Capacity | None = None
        self.stats: Stats | None = None
        self.death: Dead | None = None
        self.num_restarts = 0

    def start(self) -> None:
        """Start the engine and its watch; call it once, inside the event loop."""
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._supervise())]

    async def wait_loaded(self) -> None:
        """Return when the engine is ready for the first time, or dead."""
        await self._loaded.wait()

    async def wait_dead(self) -> None:
        """Return when the engine has ended for good, for whatever reason."""
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

        Tokens that came while nobody read are one report. RequestError if the engine refuses the request, EngineDeadError if
        the engine ends before it does.
        """
        if self.state != "ready":
            raise EngineDeadError(self.death.message if self.death else f"it is {self.state}")
        request_id = uuid.uuid4().hex
        stream = self._streams[request_id] = RequestStream()
        finished = False
        request = Generate(
            request_id=request_id, prompt=prompt, params=params, priority=priority, adapter=adapter, cache_salt=cache_salt
        )
        try:
            self._send(request)
            while not finished:
                report = await stream.get()
                match report:
                    case Accepted() | Tokens():
                        finished = isinstance(report, Tokens) and report.finish_reason is not None
                        yield report
                    case Refused(message=message):
                        finished = True
                        raise RequestError(message)
                    case Dead(message=message):
                        raise EngineDeadError(message)
        finally:
            del self._streams[request_id]
            if not finished and self.state == "ready":
                self._send(Abort(request_id=request_id))

    def end_streams(self, message: str) -> None:
        """End every running request with an EngineDeadError of this message."""
        for stream in self._streams.values():
            stream.put(Dead(message=message, cause="stopped"))

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop the engine, by force after `timeout_s`; whether it ended by itself."""
        self._stopping.set()
        if self.state == "ready":
            self._send(Stop())
        else:
            self.kill()  # it hears nothing while it loads
        by_itself = not self._tasks or await _is_set_within(self._dead, timeout_s)
        if not by_itself:
            self.kill()
            await _is_set_within(self._dead, _EXIT_WAIT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.close()
        return by_itself

    def close(self) -> None:
        """Give the port or the folder back, whether it was started or not; may be called again."""
        self.kill()
        self._socket.close()

    def kill(self) -> None:
        """End the engine now."""
        if self._worker is not None:
            self._worker.kill()

    def _send(self, command: Command) -> None:
        self._socket.send(self._identity, encode(command))

    async def _supervise(self) -> None:
        """Start engines until one ends as it was asked to, or too many have failed in a row."""
        failures = 0
        death = Dead(message="stopped", cause="stopped")
        while not self._stopping.is_set():
            self._identity = secrets.token_hex(16)
            self._last_report = None
            self._worker = self._launch(Connection(self._socket.address, self._identity))
            death, ready_s = await self._until_dead(self._worker)
            await self._end(self._worker)
            failures = 1 if ready_s >= self._restarts.stable_s else failures + 1
            if self._stopping.is_set() or not self._loaded.is_set() or failures > self._restarts.most:
                break
            self.state, self.stats = "restarting", None  # what it said last is true no more
            self.end_streams(death.message)
            delay_s = self._restarts.delay_s(failures)
            _log.error("%s; it is started again in %g s (%d of %d)", death.message, delay_s, failures, self._restarts.most)
            if not await _is_set_within(self._stopping, delay_s):
                self.num_restarts += 1
        if self._stopping.is_set():  # also if it had to be killed: that is what was asked for
            death = Dead(message="stopped", cause="stopped")
        self.state, self.death = "dead", death
        self.end_streams(death.message)
        self._loaded.set()
        self._dead.set()

    async def _until_dead(self, worker: Worker) -> tuple[Dead, float]:
        """How it ended, and how long it was ready. Notices an end within two watches."""
        loop = asyncio.get_running_loop()
        ready_at: float | None = None
        death: Dead | None = None
        while death is None:
            await asyncio.sleep(_WATCH_EVERY_S)
            if self.state == "ready" and ready_at is None:
                ready_at = loop.time()
            reason = worker.exit_reason()
            if reason is not None:
                await asyncio.sleep(_WATCH_EVERY_S)  # what it said last may still be on its way
            if self._last_report is not None:
                death = self._last_report
            elif reason is not None:
                death = Dead(message=reason, cause="defect")
            elif self.state == "ready":
                death = self._check_heartbeat()
        return death, 0.0 if ready_at is None else loop.time() - ready_at

    async def _end(self, worker: Worker) -> None:
        """Wait for the end of an engine that says so itself, and end any other."""
        if self._last_report is None or not await self._ended_within(worker, _EXIT_WAIT_S):
            worker.kill()
            await self._ended_within(worker, _EXIT_WAIT_S)

    async def _ended_within(self, worker: Worker, timeout_s: float) -> bool:
        end = asyncio.get_running_loop().time() + timeout_s
        while worker.exit_reason() is None:
            if asyncio.get_running_loop().time() >= end:
                return False
            await asyncio.sleep(_WATCH_EVERY_S / 10)
        return True

    def _check_heartbeat(self) -> Dead | None:
        if self._heartbeat.must_ask():
            self._send(Ping())
        if self._heartbeat.hangs:
            return Dead(message=f"the engine did not answer for {self._heartbeat.timeout_s:g} s", cause="defect")
        return None

    async def _receive(self) -> None:
        while True:
            identity, frames = await self._socket.receive()
            if identity != self._identity:  # an engine that was given up, or a stranger on the port
                _log.debug("a message of an unknown sender was dropped")
                continue
            self._take(frames)

    def _take(self, frames: list[Frame]) -> None:
        try:
            report: Report = self._decoder.decode(frames)
        except WireError as error:
            _log.error("a report of the engine was dropped: %s", error)
            return
        self._heartbeat.hear()
        match report:
            case Step(tokens=reports):
                for tokens in reports:
                    self._put(tokens.request_id, tokens)
            case Accepted(request_id=request_id) | Refused(request_id=request_id):
                self._put(request_id, report)
            case Stats():
                self.stats = report
            case Ready(capacity=capacity):
                if self.state == "restarting":
                    _log.warning("the engine is ready again")
                self.state, self.capacity = "ready", capacity
                self._loaded.set()
            case Dead():
                self._last_report = report

    def _put(self, request_id: str, report: Accepted | Tokens | Refused) -> None:
        if request_id in self._streams:  # else it was aborted while this report was on its way
            self._streams[request_id].put(report)


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return False
    return True
