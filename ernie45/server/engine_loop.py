"""The engine's side of the boundary: take commands, step the engine, send reports.

Knows nothing about HTTP, text or asyncio.
"""

import logging
import queue
from collections.abc import Callable, Sequence
from typing import Protocol

from ernie45.config.errors import Ernie45Error
from ernie45.server.messages import Abort, Accepted, Capacity, Command, Dead, Generate, Ready, Refused, Report, Stop, Tokens

_log = logging.getLogger("ernie45.engine")


class Engine(Protocol):
    """What the loop asks of an engine. One thread calls it."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def submit(self, request: Generate) -> None:
        """Queue a request. Ernie45Error if it can never run."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request and free what it holds; an unknown id is no error."""
        ...

    def step(self) -> Sequence[Tokens]:
        """Advance every running request; the new tokens of each."""
        ...


def run_engine(load: Callable[[], Engine], inbox: "queue.SimpleQueue[Command]", send: Callable[[Report], None]) -> None:
    """Load an engine and serve it until Stop. The last report is always Dead."""
    death = Dead(message="stopped", cause="stopped")
    try:
        engine = load()
        send(Ready(capacity=engine.capacity))
        while _take_commands(engine, inbox, send):
            if engine.has_work:
                for tokens in engine.step():
                    send(tokens)
    except Ernie45Error as error:
        death = Dead(message=str(error), cause="user")
    except Exception as error:  # noqa: BLE001  whatever ends the engine, the other side has to learn of it
        _log.exception("the engine failed")
        death = Dead(message=f"the engine failed: {type(error).__name__}: {error}", cause="defect")
    send(death)


def _take_commands(engine: Engine, inbox: "queue.SimpleQueue[Command]", send: Callable[[Report], None]) -> bool:
    """Run all commands that wait; without work, wait for one. False after Stop."""
    while True:
        try:
            command = inbox.get(block=not engine.has_work)
        except queue.Empty:
            return True
        match command:
            case Generate(request_id=request_id):
                try:
                    engine.submit(command)
                    send(Accepted(request_id=request_id))
                except Ernie45Error as error:
                    send(Refused(request_id=request_id, message=str(error)))
            case Abort(request_id=request_id):
                engine.abort(request_id)
            case Stop():
                return False
