"""Which tokens of which requests the next step computes: a state machine over requests and pages.

Knows nothing about tensors, devices or how a token is chosen.

One rule: a request's work is `num_tokens - num_computed_tokens`, and a step has one token budget. Chunked prefill, decode,
prefix hits and resumption after preemption all follow from it.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.engine.pages import PagePool
from ernie45.engine.prefix_cache import PrefixCache
from ernie45.engine.request import Event, Request, StepOutput


class Chunk(NamedTuple):
    """Tokens start to end of one request, computed in one step. `samples`: they reach the last token, so one is drawn."""

    request: Request
    start: int
    end: int
    samples: bool


@dataclass(frozen=True)
class SchedulerStats:
    """Gauges of now, and counters since the start (`num_preemptions`, `num_queried_tokens`, `num_hit_tokens`)."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    num_preemptions: int
    num_queried_tokens: int
    num_hit_tokens: int


class Scheduler:
    """First come, first served; requests that run go before requests that wait, and decoding before prefill.

    `add` and `abort` may come between any two calls; each `schedule` is followed by one `update` with its plan.
    `running` is in order of arrival, so the oldest request can always make room for itself: nobody waits for ever.
    """

    def __init__(self, config: EngineConfig, num_pages: int, max_model_len: int) -> None:
        self._config = config
        self._pool = PagePool(num_pages)
        self._cache = PrefixCache(self._pool, config.page_size, config.prefix_cache)
        self.max_model_len = min(max_model_len, num_pages * config.page_size)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._num_preemptions = 0
        self._arrivals = 0
        self._arrival: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_pages=self._pool.num_pages,
            num_free_pages=self._pool.num_free,
            num_cached_pages=self._pool.num_idle,
            num_preemptions=self._num_preemptions,
            num_queried_tokens=self._cache.num_queried_tokens,
            num_hit_tokens=self._cache.num_hit_tokens,
        )

    def add(self, request: Request) -> None:
        """Queue a request. RequestError if its prompt is empty or fills the context, or if its id is in use."""
        if request.request_id in self._arrival:
            raise RequestError(f"request_id ({request.request_id!r}) must be new; it is still running, choose another")
        if request.num_tokens == 0:
            raise RequestError("prompt (0 tokens) must have at least one token; give some text or a picture")
        if request.num_tokens >= self.max_model_len:
            raise RequestError(
                f"prompt ({request.num_tokens} tokens) must be shorter than the context of {self.max_model_len} tokens, "
                "so that an answer fits; shorten it, use smaller pictures, or serve with a longer context"
            )
        request.limit = min(request.limit, self.max_model_len)
        self._arrival[request.request_id] = self._arrivals
        self._arrivals += 1
        self._waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its pages; False if it is not here. A step under way may still compute it, to no effect."""
        if self._arrival.pop(request_id, None) is None:
            return False
        for queue in (self._waiting, self._running):
            for request in queue:
                if request.request_id == request_id:
                    queue.remove(request)
                    self._drop_pages(request)
                    request.state = "finished"
                    return True
        raise AssertionError(request_id)

    def schedule(self) -> list[Chunk]:
        """The next step: at most one chunk per request, each with its pages in place. Empty if there is nothing to do.

        Steps: 1. running requests with one token left (decode); 2. running requests with more (prefill); 3. admission of
        waiting ones. The first prefill chunk may exceed the budget, but only to finish one picture that does not fit in it.
        """
        chunks: dict[str, Chunk] = {}
        budget = self._config.max_num_batched_tokens
        num_preemptions = self._num_preemptions
        prefills = [request for request in self._running if request.num_tokens - request.num_computed_tokens > 1]
        for request in list(self._running):
            if request.state == "running" and request.num_tokens - request.num_computed_tokens == 1:
                budget += self._grow(request, chunks)
                if request.state == "running":
                    chunks[request.request_id] = Chunk(request, request.num_computed_tokens, request.num_tokens, True)
                    budget -= 1
        num_decodes = len(chunks)
        for request in prefills:
            if request.state == "running" and budget > 0:
                budget -= self._add_chunk(request, chunks, budget, first=len(chunks) == num_decodes)
        if num_preemptions == self._num_preemptions:
            while self._waiting and budget > 0 and len(self._running) < self._config.max_num_seqs:
                num_tokens = self._admit(self._waiting[0], chunks, budget, first=len(chunks) == num_decodes)
                if num_tokens == 0:
                    break
                budget -= num_tokens
        return list(chunks.values())

    def update(self, chunks: Sequence[Chunk], output: StepOutput) -> list[Event]:
        """Book a step that ran. One event for each chunk that samples, in order."""
        events: list[Event] = []
        drawn = zip(output.token_ids, output.logprobs or repeat(None), strict=False)
        for request, start, end, samples in chunks:
            token_id, logprob = next(drawn) if samples else (None, None)
            if request.state != "running":
                continue
            request.num_computed_tokens = end
            self._cache.publish(request, start, end)
            if request.request_id in output.prompt_logprobs:
                request.extend_prompt_logprobs(*output.prompt_logprobs[request.request_id])
            if token_id is not None:
                events.append(request.append(token_id, logprob))
                if request.finish_reason is not None:
                    self._finish(request)
        return events

    def check_integrity(self) -> None:
        """Assert what must hold between any two calls."""
        self._pool.check_integrity()
        holders = [0] * self._pool.num_pages
        assert len(self._running) <= self._config.max_num_seqs, len(self._running)
        for request in self._running:
            assert request.state == "running", request.request_id
            assert request.num_computed_tokens < request.num_tokens, request.request_id
            assert len(request.pages) * self._config.page_size >= request.num_computed_tokens, request.request_id
            for page in request.pages:
                holders[page] += 1
        for request in self._waiting:
            assert request.state == "waiting", request.request_id
            assert not request.pages, request.request_id
            assert request.num_computed_tokens == 0, request.request_id
        order = [self._arrival[request.request_id] for request in (*self._running, *self._waiting)]
        assert order == sorted(order), order
        assert len(order) == len(self._arrival), self._arrival
        assert holders == [self._pool.num_holders(page) for page in range(self._pool.num_pages)], holders

    def _grow(self, request: Request, chunks: dict[str, Chunk]) -> int:
        """Pages for all tokens of a running request, if need be by preempting the youngest, itself included.

        Returns the tokens that preempted requests give back to this step's budget.
        """
        returned = 0
        missing = -(-request.num_tokens // self._config.page_size) - len(request.pages)
        while missing > self._pool.num_free:
            victim = self._running[-1]
            chunk = chunks.pop(victim.request_id, None)
            returned += chunk.end - chunk.start if chunk is not None else 0
            self._preempt(victim)
            if victim is request:
                return returned
        if missing > 0:
            request.pages.extend(self._pool.allocate(missing))
        return returned

    def _preempt(self, request: Request) -> None:
        self._num_preemptions += 1
        self._running.remove(request)
        self._drop_pages(request)
        request.num_computed_tokens = 0
        request.state = "waiting"
        self._waiting.appendleft(request)

    def _add_chunk(self, request: Request, chunks: dict[str, Chunk], budget: int, first: bool) -> int:
        """Plan the next chunk of a request that has its pages; returns its length, 0 if a picture must wait."""
        start = request.num_computed_tokens
        end = chunk_end(request, start, budget, may_exceed=first)
        if end > start:
            chunks[request.request_id] = Chunk(request, start, end, end == request.num_tokens)
        return end - start

    def _admit(self, request: Request, chunks: dict[str, Chunk], budget: int, first: bool) -> int:
        """Give the first waiting request pages for all its tokens and its first chunk; returns its length, 0 if it must wait.

        One page for each running request stays free, so that an admission is not undone by the next step's decoding.
        """
        pages = self._cache.acquire_prefix(request)
        missing = -(-request.num_tokens // self._config.page_size) - len(pages)
        request.num_computed_tokens = len(pages) * self._config.page_size
        num_tokens = 0
        if missing + len(self._running) <= self._pool.num_free:
            num_tokens = self._add_chunk(request, chunks, budget, first)
        if num_tokens == 0:
            self._pool.release(pages)
            request.num_computed_tokens = 0
            return 0
        request.pages = array("q", pages + self._pool.allocate(missing))
        if request.num_tokens == request.num_prompt_tokens:  # a resumed answer finds its own pages: no hit of the prompt
            request.num_cached_tokens = request.num_computed_tokens
            self._cache.count(request)
        request.state = "running"
        self._waiting.popleft()
        self._running.append(request)
        return num_tokens

    def _finish(self, request: Request) -> None:
        self._running.remove(request)
        del self._arrival[request.request_id]
        self._drop_pages(request)
        request.state = "finished"

    def _drop_pages(self, request: Request) -> None:
        self._pool.release(request.pages)
        request.pages = array("q")


def chunk_end(request: Request, start: int, budget: int, may_exceed: bool) -> int:
    """Where a chunk that begins at `start` ends: at most `budget` tokens on, and never inside an image or a two-frame unit.

    Returns `start` when the chunk would begin with a unit that does not fit; with `may_exceed` that unit is taken whole.
    """
    end = min(request.num_tokens, start + budget)
    index = bisect_right(request.unit_starts, end - 1) - 1
    if index < 0 or request.units[index].end <= end:
        return end
    unit = request.units[index]
    if unit.start > start:
        return unit.start
    return unit.end if may_exceed else start
