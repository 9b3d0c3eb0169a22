"""The engine's side of the boundary: take commands, step the engine, send reports.

Knows nothing about HTTP, text, asyncio or whether it has a process of its own.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Protocol

from ernie45.config.errors import Ernie45Error
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
from ernie45.server.wire import MessageDecoder, WireError, encode
from ernie45.server.wire_socket import Connection, EngineSocket

_log = logging.getLogger("ernie45.engine")
_STATS_EVERY_S = 0.25
_PREPARE_WAIT_S = 0.005


class Engine(Protocol):
    """What the loop asks of an engine. One thread calls it."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def prepare(self, request: Generate) -> "Future[None] | None":
        """Begin what takes long about a request, beside the steps; None if there is nothing. It may end in an Ernie45Error."""
        ...

    def submit(self, request: Generate) -> None:
        """Queue a request that is prepared. Ernie45Error if it can never run."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request and free what it holds; an unknown id is no error."""
        ...

    def step(self) -> Sequence[Tokens]:
        """Advance every running request; the new tokens of each."""
        ...

    def stats(self) -> Stats:
        """How it is doing; what the loop counts (steps, tokens, seconds) may be left at 0."""
        ...

    def close(self) -> None:
        """End its threads, and keep for the next start what is worth keeping."""
        ...


def run_engine(load: Callable[[], Engine], connection: Connection) -> Dead:
    """Load an engine and serve it until Stop. The last report is always Dead; it is returned too."""
    socket = EngineSocket(connection)
    death = Dead(message="stopped", cause="stopped")
    try:
        engine = load()
        _Loop(engine, socket).run()
        engine.close()  # not behind a defect: what it would keep may be wrong
    except Ernie45Error as error:
        death = Dead(message=str(error), cause="user")
    except Exception as error:  # noqa: BLE001  whatever ends the engine, the other side has to learn of it
        _log.exception("the engine failed")
        # Its type and no more: clients read this, and what it says may quote another one's prompt.
        death = Dead(message=f"the engine failed: {type(error).__name__}; see its log", cause="defect")
    socket.send(encode(death))
    socket.close()
    return death


class _Loop:
    """One engine, one socket, and the counts of what passed."""

    def __init__(self, engine: Engine, socket: EngineSocket) -> None:
        self._engine = engine
        self._socket = socket
        self._decoder = MessageDecoder(Generate, Abort, Stop, Ping)
        self._counts = Stats()
        self._preparing: dict[str, tuple[Generate, Future[None]]] = {}
        self._next_stats = 0.0
        self._worked = True  # so that the first idle moment is told too

    def run(self) -> None:
        """Until Stop."""
        self._send(Ready(capacity=self._engine.capacity))
        while self._take_commands():
            if self._engine.has_work:
                self._step()

    def _step(self) -> None:
        began = time.perf_counter()
        tokens = tuple(self._engine.step())
        ended = time.perf_counter()
        if tokens:
            self._send(Step(tokens=tokens))
        counts = self._counts
        self._counts = replace(
            counts,
            num_steps=counts.num_steps + 1,
            num_generated_tokens=counts.num_generated_tokens + sum(report.num_tokens for report in tokens),
            step_s=counts.step_s + ended - began,
        )
        self._worked = True
        if ended >= self._next_stats:
            self._send_stats()
            self._next_stats = ended + _STATS_EVERY_S

    def _take_commands(self) -> bool:
        """Run all commands that wait; without work, wait for one. False after Stop."""
        while True:
            self._submit_prepared()
            idle = not self._engine.has_work and not self._preparing
            if idle and self._worked:
                self._worked = False
                self._send_stats()
            frames = self._socket.receive(wait=idle)
            if frames is None:
                if not self._engine.has_work:
                    wait([future for _, future in self._preparing.values()], _PREPARE_WAIT_S, FIRST_COMPLETED)
                return True
            try:
                command: Command = self._decoder.decode(frames)
            except WireError as error:
                _log.error("a command was refused: %s", error)
                if error.request_id is not None:
                    self._send(Refused(request_id=error.request_id, message=str(error)))
                continue
            if isinstance(command, Stop):
                return False
            self._execute(command)

    def _execute(self, command: Generate | Abort | Ping) -> None:
        match command:
            case Generate(request_id=request_id):
                future = self._engine.prepare(command)
                if future is None:
                    self._submit(command)
                else:
                    self._preparing[request_id] = command, future
            case Abort(request_id=request_id):
                self._worked = True  # its pages are free now: tell it when idle
                if request_id in self._preparing:
                    self._preparing.pop(request_id)[1].cancel()
                self._engine.abort(request_id)
            case Ping():
                self._send(Pong())

    def _submit_prepared(self) -> None:
        for request_id, (command, future) in tuple(self._preparing.items()):
            if future.done():
                del self._preparing[request_id]
                self._submit(command, future)

    def _submit(self, request: Generate, prepared: "Future[None] | None" = None) -> None:
        try:
            if prepared is not None:
                prepared.result()
            self._engine.submit(request)
        except Ernie45Error as error:
            self._send(Refused(request_id=request.request_id, message=str(error)))
            return
        self._counts = replace(self._counts, num_prompt_tokens=self._counts.num_prompt_tokens + len(request.prompt))
        self._send(Accepted(request_id=request.request_id))

    def _send_stats(self) -> None:
        counts = self._counts
        self._send(
            replace(
                self._engine.stats(),
                num_steps=counts.num_steps,
                num_prompt_tokens=counts.num_prompt_tokens,
                num_generated_tokens=counts.num_generated_tokens,
                step_s=counts.step_s,
            )
        )

    def _send(self, report: Report) -> None:
        self._socket.send(encode(report))
