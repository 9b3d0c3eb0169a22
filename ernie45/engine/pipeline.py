"""Steps one after the other, or each planned and laid out while the one before it runs.

Knows nothing about text, how steps are planned or what a model computes.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch

from ernie45.engine.chunks import Chunk
from ernie45.engine.page_copier import PageCopier
from ernie45.engine.request import Event, Request, StepOutput
from ernie45.engine.runner import Drawn, PreparedStep, Runner
from ernie45.engine.scheduler import Scheduler
from ernie45.engine.tiers import PageCopy

_DISK_WAIT_S = 0.05


class Flight(NamedTuple):
    """A step that has been handed to the worker. rows: of each request among the tokens it draws."""

    chunks: Sequence[Chunk]
    rows: dict[Request, int]
    drawn: "Future[Drawn]"


class Pipeline:
    """Two ways to run a planned step: `run` waits for it; `step_ahead` has one step under way and returns what the step before
    it gave. Tokens are the same, as each step's input comes from the one before on the device.

    A failed step leaves the scheduler as if no request had begun. What steps before it gave is not lost: the next call tells.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, copier: PageCopier) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._copier = copier
        self._flight: Flight | None = None
        self._untold: list[Event] = []
        # Threads of torch's own are counted for each thread that calls it.
        self._worker = ThreadPoolExecutor(1, "steps", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))

    def run(self, chunks: Sequence[Chunk]) -> StepOutput:
        """Run a plan to its end."""
        try:
            self._copier.run(self._scheduler.take_copies())
            return self._runner.run(chunks)
        except BaseException:  # also an interrupt from the keyboard: what was planned has not been computed
            self._scheduler.reset()
            raise

    @property
    def has_untold(self) -> bool:
        """Whether there are events that a failed call could not return."""
        return bool(self._untold)

    def forget(self, request_id: str) -> None:
        """Nobody wants to hear of a request any more."""
        if self._untold:
            self._untold = [event for event in self._untold if event.request_id != request_id]

    def step_ahead(self) -> list[Event]:
        """Plan and start the next step, then book the one before it."""
        try:
            if self._flight is not None and any(_needs_host(chunk.request) for chunk in self._flight.chunks):
                self._land()
            chunks = self._scheduler.schedule()
            following = self._launch(chunks) if chunks else None
            self._land()
            self._flight = following
            if not self._scheduler.has_work:
                self._land()  # a step for answers that have stopped
        except BaseException:
            self._flight = None
            self._scheduler.reset()
            raise
        events, self._untold = self._untold, []
        if not chunks and not events:
            self.await_disk()
        return events

    def await_disk(self) -> None:
        """With nothing to compute: wait a moment for a page that is being read."""
        fetch = self._scheduler.unfinished_fetch()
        if fetch is not None:
            wait([fetch], timeout=_DISK_WAIT_S)

    def archive(self) -> None:
        """Copy to disk what only memory holds; waits for the disk."""
        self._copier.run(self._scheduler.archive(), patiently=True)

    def close(self) -> None:
        """Finish what is under way and end the worker. If that fails, nothing of the cache is used any more."""
        try:
            self._land()
        except BaseException:
            self._scheduler.reset()
            raise
        finally:
            self._worker.shutdown()

    def _launch(self, chunks: Sequence[Chunk]) -> Flight:
        previous = self._flight
        step = self._runner.prepare(chunks, previous.rows if previous else None)
        copies = self._scheduler.take_copies()
        drawn = self._worker.submit(self._execute, step, copies, previous)
        rows = {chunk.request: row for row, chunk in enumerate(chunk for chunk in chunks if chunk.samples)}
        return Flight(chunks, rows, drawn)

    def _execute(self, step: PreparedStep, copies: Sequence[PageCopy], previous: Flight | None) -> Drawn:
        # If the step before has failed, so does this one, before it copies pages that were never filled to where they last.
        drawn = previous.drawn.result() if previous else None
        self._copier.run(copies)
        return self._runner.execute(step, drawn.tokens_R if drawn and step.unseen else None)

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            self._untold += self._scheduler.update(flight.chunks, flight.drawn.result().output())


def _needs_host(request: Request) -> bool:
    """Whether the host must see a request's last token before it can plan the next."""
    params = request.params
    return request.history is not None or params.logprobs is not None or params.prompt_logprobs is not None
