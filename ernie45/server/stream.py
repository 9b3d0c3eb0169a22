"""From the reports of a task's engine requests to its answer: one object, or server-sent events.

Knows nothing about bodies, the form of answers or the engine's work.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from ernie45.server.errors import ApiError
from ernie45.server.messages import Accepted, Tokens
from ernie45.server.reply import Reply
from ernie45.server.timeline import current_record

Reports = AsyncGenerator[Accepted | Tokens, None]
T = TypeVar("T")


class Deadline:
    """When a request must have ended; None: never. Belongs to one event loop."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else asyncio.get_running_loop().time() + seconds

    async def run(self, work: Awaitable[T]) -> T:
        """The result of the work; ApiError (504), with the work cancelled, if it is not there in time."""
        task = asyncio.current_task()
        if self._end is None or task is None:
            return await work
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            current_record().timed_out = True
            task.cancel()

        timer = asyncio.get_running_loop().call_at(self._end, expire)
        try:
            return await work
        except asyncio.CancelledError:
            if not expired:
                raise
            rule = (
                f"the request took longer than {self.seconds:g} s, the limit of this server; ask for less, or try again later"
            )
            raise ApiError(504, rule, code="timeout") from None
        finally:
            timer.cancel()


class Runs:
    """The engine requests of one task, read as one stream."""

    def __init__(self, reports: Sequence[Reports], deadline: Deadline) -> None:
        self._reports = list(reports)
        self._deadline = deadline
        self._waiting: dict[asyncio.Future[Accepted | Tokens], int] = {}

    async def accept(self) -> None:
        """Return when the engine has taken all of them; raise what it says if it refuses one."""
        replies = asyncio.gather(*(anext(reports) for reports in self._reports), return_exceptions=True)
        for reply in await self._deadline.run(replies):  # all of them: a request cannot be closed while it is asked
            if isinstance(reply, BaseException):
                raise reply

    async def next(self) -> tuple[int, Tokens]:
        """The next report, and which request it belongs to. Call it only while one runs."""
        if len(self._reports) == 1:
            report = await self._deadline.run(anext(self._reports[0]))
            assert isinstance(report, Tokens), report
            return 0, report
        while True:
            done = next((future for future in self._waiting if future.done()), None)
            if done is not None:
                return self._take(done)
            if not self._waiting:
                for index in range(len(self._reports)):
                    self._ask(index)
            await self._deadline.run(asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED))

    async def close(self, index: int) -> None:
        """End one request; what it holds is free then. It may have ended by itself."""
        for future in [future for future, other in self._waiting.items() if other == index]:
            del self._waiting[future]
            future.cancel()
            await asyncio.gather(future, return_exceptions=True)
        await self._reports[index].aclose()

    async def close_all(self) -> None:
        """End all requests; fine to call more than once."""
        for index in range(len(self._reports)):
            await self.close(index)

    def _take(self, done: "asyncio.Future[Accepted | Tokens]") -> tuple[int, Tokens]:
        index, report = self._waiting.pop(done), done.result()
        assert isinstance(report, Tokens), report
        if report.finish_reason is None:
            self._ask(index)
        return index, report

    def _ask(self, index: int) -> None:
        self._waiting[asyncio.ensure_future(anext(self._reports[index]))] = index


async def read_all(reply: Reply, runs: Runs) -> None:
    """Wait for the end of every choice, not longer than needed."""
    while not reply.finished:
        index, report = await runs.next()
        choice = reply.choices[index]
        choice.add(report)
        if choice.finish_reason is not None:
            await runs.close(index)


async def events(reply: Reply, runs: Runs, to_error: Callable[[Exception], ApiError]) -> AsyncGenerator[bytes, None]:
    """Server-sent events from the first to the last.

    to_error: what to tell the client when something fails under way; the answer then ends with an error event.
    """
    try:
        for event in reply.begin():
            yield reply.encode(event)
        while not reply.finished:
            index, report = await runs.next()
            sent = reply.take(index, report)
            if reply.choices[index].finish_reason is not None:
                await runs.close(index)  # frees what the engine holds before the client has read the rest
            for event in sent:
                yield reply.encode(event)
        for event in reply.end():
            yield reply.encode(event)
    except Exception as error:  # noqa: BLE001  the status is sent already: an event is the only place left to say it
        yield reply.encode(to_error(error).body)
    yield reply.last
