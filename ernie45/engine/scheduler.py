"""Which tokens of which requests the next step computes: a state machine over requests and pages.

Knows nothing about tensors, devices or how a token is chosen.

One rule: a request's work is what it has of tokens, known or being drawn, less `num_computed_tokens`, and a step has one token
budget. Chunked prefill, decode, prefix hits and resumption after preemption all follow from it.

A plan counts as done as soon as it is made: steps run in the order of their plans, and within a step every key and value is
written before any is read. So pages can be shared within the step that fills them, and the next step can be planned while
this one runs.
"""

from array import array
from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Literal

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.engine.chunks import Chunk, StepBudget
from ernie45.engine.pages import PagePool
from ernie45.engine.prefix_cache import PrefixCache
from ernie45.engine.request import Event, Request, StepOutput
from ernie45.engine.stats import SchedulerStats
from ernie45.engine.tiers import PageCopy, PageTiers

_PATIENCE_S = 60.0  # whoever came so much later is less urgent, though his priority be one better
_MAX_PASSED_OVER = 64  # waiting requests that one step looks at in vain: a bound on its cost


class Scheduler:
    """The most urgent first, equal ones in order of arrival; who runs goes before who waits, and decoding before prefill.

    `add` and `abort` may come between any two calls; each plan of `schedule` goes to one `update`, in the same order, and at
    most one more plan may be made before that. `running` is in order of urgency, and the most urgent request can always make
    room for itself, also while it waits: less urgent ones go back into the queue for it. A step of priority counts as much as
    `_PATIENCE_S` of waiting, so nobody waits for ever behind more urgent ones that keep coming.
    """

    def __init__(
        self,
        config: EngineConfig,
        num_pages: int,
        max_model_len: int,
        tiers: PageTiers | None = None,
        is_encoded: Callable[[tuple], bool] = lambda key: False,
        context_of_double: int | None = None,
    ) -> None:
        self._config, self._tiers = config, tiers or PageTiers()
        self._pool = PagePool(num_pages, self._tiers.put_down)
        self._cache = PrefixCache(self._pool, self._tiers, config.page_size, config.prefix_cache)
        self._is_encoded, self._context_of_double = is_encoded, context_of_double
        self.max_model_len = min(max_model_len, num_pages * config.page_size)
        self._requests: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._num_preemptions = self._num_arrivals = 0
        self._stuck: tuple[Request, int] | None = None
        self._lacking: tuple[list, int] = ([], 0)  # orders of who lacked pages and of who ran beside, and the pages needed

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def running(self) -> Sequence[Request]:
        return self._running

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
            num_host_hit_tokens=self._cache.num_host_hit_tokens,
            num_disk_hit_tokens=self._cache.num_disk_hit_tokens,
            num_host_pages=self._tiers.num_host_pages,
            num_disk_pages=self._tiers.num_disk_pages,
            num_running_tokens=sum(len(request.tokens) for request in self._running),
        )

    def add(self, request: Request) -> None:
        """Queue a request. RequestError if its prompt is empty or fills the context, or if its id is in use."""
        if request.request_id in self._requests:
            raise RequestError(f"request_id ({request.request_id!r}) must be new; it is still running, choose another")
        if request.num_tokens == 0:
            raise RequestError("prompt (0 tokens) must have at least one token; give some text or a picture")
        if request.num_tokens >= self.max_model_len:
            raise RequestError(
                f"prompt ({request.num_tokens} tokens) must be shorter than the context of {self.max_model_len} tokens, "
                "so that an answer fits; shorten it, use smaller pictures, or serve with a longer context"
            )
        request.limit = min(request.limit, self.max_model_len)
        request.order = (monotonic() + request.priority * _PATIENCE_S, self._num_arrivals)
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        insort(self._waiting, request, key=_order)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its pages; False if it is not here. A step under way may still compute it, to no effect."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request)
        return True

    def schedule(self) -> list[Chunk]:
        """The next step: at most one chunk per request, each with its pages in place. Empty if there is nothing to do.

        Steps: 1. running requests with one token left (decode); 2. running requests with more (prefill); 3. admission of
        waiting ones; 4. what is left of the budget, to long prompts. The first prefill chunk may exceed the budget, but only
        to finish one picture that does not fit in it.
        """
        self._make_room()
        config, num_preemptions = self._config, self._num_preemptions
        chunks: dict[str, Chunk] = {}
        prefills = self._plan_decodes(chunks)
        num_rows = len(chunks)
        if config.speculation.method != "none":
            num_rows += self._add_drafts(chunks, bool(prefills or self._waiting))
        tokens = config.max_num_batched_tokens - num_rows
        if chunks:
            tokens = min(tokens, config.prefill_tokens_beside_decodes)
        if tokens > 0 and (prefills or self._waiting):
            hard_tokens = config.max_num_batched_tokens - num_rows
            double = self._context_of_double if chunks else None  # alone, a prompt keeps nobody waiting
            budget = StepBudget(tokens, hard_tokens, config.encoder_tokens, self._is_encoded, double)
            threshold = config.long_prefill_token_threshold or tokens
            num_long = sum(request.num_tokens - request.num_computed_tokens > threshold for request in prefills)
            for request in prefills:
                if budget.tokens > 0:
                    self._plan_prefill(request, chunks, budget, threshold)
            if num_preemptions == self._num_preemptions and self._waiting:
                prefills += self._admit_waiting(chunks, budget, threshold, num_long)
            for request in prefills:
                if budget.tokens > 0:
                    self._lengthen(request, chunks, budget)
        return list(chunks.values())

    def take_copies(self) -> list[PageCopy]:
        """Copies of pages to make before the step planned last runs, in this order."""
        return self._tiers.take_copies()

    def update(self, chunks: Sequence[Chunk], output: StepOutput) -> list[Event]:
        """Book a step that ran. One event for each chunk that samples, in order."""
        token_ids, logprobs, told = output
        events: list[Event] = []
        row = 0
        for request, _, _, samples in chunks:
            first, draft = row, request.draft
            if samples:
                row += 1 + len(draft) if draft else 1
                request.num_pending_tokens -= 1
            if request.state == "finished":
                continue  # aborted, or stopped by the token before: what came is surplus
            if told and request.request_id in told:
                request.extend_prompt_logprobs(*told[request.request_id])
            if samples:
                if draft:
                    events.append(request.take(token_ids[first:row], logprobs[first:row]))
                    request.num_computed_tokens = len(request.tokens) - 1  # guesses that came true are computed
                else:
                    events.append(request.append(token_ids[first], logprobs[first] if logprobs else None))
                if request.finish_reason is not None:
                    self._finish(request)
        return events

    def reset(self) -> None:
        """After a step that failed: nothing that the cache holds is trusted, and every request begins anew."""
        while self._running:
            self._preempt(self._running[-1])
        for request in self._waiting:
            request.num_pending_tokens = 0
        self._pool.forget_keys()
        self._tiers.reset()

    def archive(self) -> list[PageCopy]:
        """Copies that bring everything worth keeping to disk, for the next start."""
        self._tiers.archive(self._pool.idle_keys())
        return self.take_copies()

    def unfinished_fetch(self) -> "Future[bytes | None] | None":
        """A read from disk that some request waits for."""
        return self._tiers.unfinished_fetch()

    def check_integrity(self) -> None:
        """Assert what must hold between any two calls."""
        self._pool.check_integrity()
        self._tiers.check_integrity()
        self._cache.check_integrity()
        holders = [0] * self._pool.num_pages
        assert len(self._running) <= self._config.max_num_seqs, len(self._running)
        for request in self._running:
            assert request.state == "running", request.request_id
            assert request.num_computed_tokens < request.num_tokens + request.num_pending_tokens, request.request_id
            assert len(request.pages) * self._config.page_size >= request.num_computed_tokens, request.request_id
            assert request.num_published_pages <= len(request.pages), request.request_id
            for page in request.pages:
                holders[page] += 1
        for request in self._waiting:
            assert request.state == "waiting", request.request_id
            assert not request.pages, request.request_id
            assert request.num_computed_tokens == 0, request.request_id
        for queue in (self._running, self._waiting):
            assert queue == sorted(queue, key=_order), [request.order for request in queue]
            assert all(self._requests[request.request_id] is request for request in queue)
        assert len(self._running) + len(self._waiting) == len(self._requests), self._requests
        assert holders == [self._pool.num_holders(page) for page in range(self._pool.num_pages)], holders

    def _make_room(self) -> None:
        """Preempt less urgent requests for the one that lacked pages or a seat in the last plan, if that can be enough.

        Between two plans, as what a preempted request had in a plan would not be computed, and others may have found it.
        """
        if self._stuck is None:
            return
        (request, num_free), self._stuck = self._stuck, None
        if request.state != "waiting":
            return
        num_free += len(self._running)  # they may grow before it is its turn
        less_urgent = [other for other in self._running if _goes_before(request, other)]
        if self._pool.num_free + sum(len(other.pages) for other in less_urgent) >= num_free:
            while less_urgent and (self._pool.num_free < num_free or len(self._running) >= self._config.max_num_seqs):
                self._preempt(less_urgent.pop())

    def _plan_decodes(self, chunks: dict[str, Chunk]) -> list[Request]:
        """One token for every running request that needs no more, and pages for it; the others, which have a prompt left."""
        prefills: list[Request] = []
        filled: list[Request] = []
        page_size, new_tuple = self._config.page_size, tuple.__new__
        for request in tuple(self._running):
            if request.state != "running":
                continue  # it has just made room for a more urgent one
            start, known = request.num_computed_tokens, len(request.tokens)
            total = known + request.num_pending_tokens
            if total - start > 1:
                prefills.append(request)
            elif total < request.limit:  # else its last token is being drawn
                if total > len(request.pages) * page_size and not self._grow(request, chunks):
                    continue
                chunks[request.request_id] = new_tuple(Chunk, (request, start, total, True))  # a third of the time of Chunk()
                request.num_computed_tokens = total
                request.num_pending_tokens += 1
                if known >= (request.num_published_pages + 1) * page_size:
                    filled.append(request)
        for request in filled:
            if request.state == "running":
                self._cache.publish(request)
        return [request for request in prefills if request.state == "running"]

    def _add_drafts(self, chunks: dict[str, Chunk], has_prompts: bool) -> int:
        """Let decoding requests compute their guesses too, as far as budget and pages go; returns how many those are.

        Prompts keep half of the budget, and each running request the page that it may need next: guesses delay nobody.
        """
        most = (self._config.max_num_batched_tokens - len(chunks)) // (2 if has_prompts else 1)
        num_drafted, page_size = 0, self._config.page_size
        for request, start, end, _ in tuple(chunks.values()):
            if request.draft:
                num_spare = max(self._pool.num_free - len(self._running), 0)
                room = min(most - num_drafted, (len(request.pages) + num_spare) * page_size - end)
                request.draft = request.draft[: max(room, 0)]
                end += len(request.draft)
                missing = -(-end // page_size) - len(request.pages)
                if missing > 0:
                    request.pages.extend(self._pool.allocate(missing))
                chunks[request.request_id] = Chunk(request, start, end, True)
                num_drafted += len(request.draft)
        return num_drafted

    def _grow(self, request: Request, chunks: dict[str, Chunk]) -> bool:
        """One more page for a running request, if need be by preempting the least urgent; False if that is itself."""
        while not self._pool.num_free:
            victim = self._running[-1]
            chunk = chunks.pop(victim.request_id, None)
            if chunk is not None:
                victim.num_pending_tokens -= 1
            self._preempt(victim)
            if victim is request:
                return False
        request.pages.extend(self._pool.allocate(1))
        return True

    def _preempt(self, request: Request) -> None:
        self._num_preemptions += 1
        self._running.remove(request)
        self._drop_pages(request)
        request.num_computed_tokens = 0
        request.draft = ()
        request.state = "waiting"
        insort(self._waiting, request, key=_order)

    def _plan_prefill(self, request: Request, chunks: dict[str, Chunk], budget: StepBudget, threshold: int) -> None:
        """Plan the next chunk of a running request, unless it begins with a picture that must wait."""
        start = request.num_computed_tokens
        end = budget.first_end(request, start, threshold)
        if end > start:
            budget.take(request, start, end)
            self._set_chunk(request, chunks, start, end)

    def _lengthen(self, request: Request, chunks: dict[str, Chunk], budget: StepBudget) -> None:
        """Give a chunk what is left of the budget."""
        chunk = chunks.get(request.request_id)
        if chunk is not None and not chunk.samples:
            end = budget.chunk_end(request, chunk.end, budget.tokens)
            if end > chunk.end:
                budget.take(request, chunk.end, end)
                self._set_chunk(request, chunks, chunk.start, end)

    def _set_chunk(self, request: Request, chunks: dict[str, Chunk], start: int, end: int) -> None:
        samples = end == request.num_tokens
        chunks[request.request_id] = Chunk(request, start, end, samples)
        request.num_computed_tokens = end
        request.num_pending_tokens = int(samples)
        self._cache.publish(request)

    def _admit_waiting(self, chunks: dict[str, Chunk], budget: StepBudget, threshold: int, num_long: int) -> list[Request]:
        """Let waiting requests begin, in order. Who waits for another's pages, for a picture's turn or a long prompt's is
        overtaken; who waits for memory is not."""
        admitted: list[Request] = []
        index = 0
        while index < min(len(self._waiting), _MAX_PASSED_OVER) and budget.tokens > 0:
            request = self._waiting[index]
            if len(self._running) >= self._config.max_num_seqs and not _goes_before(request, self._running[-1]):
                break
            longest = 2**62 if num_long < self._config.max_long_partial_prefills else threshold
            outcome = self._admit(request, chunks, budget, threshold, longest)
            if outcome == "blocked":
                break
            if outcome == "later":
                index += 1
                continue
            num_long += request.num_tokens - chunks[request.request_id].start > threshold
            admitted.append(request)
        return admitted

    def _admit(
        self, request: Request, chunks: dict[str, Chunk], budget: StepBudget, threshold: int, longest: int
    ) -> Literal["admitted", "later", "blocked"]:
        """Give a waiting request pages for all its tokens and plan its first chunk, unless more than `longest` are to compute.

        One page for each running request stays free, so that an admission is not undone by the next step's decoding.
        """
        if request.num_pending_tokens or self._cache.must_wait(request):
            return "later"
        if self._pool.num_free < self._lacking[1] and self._lacking[0] == list(map(_order, (request, *self._running))):
            return "blocked"  # a look costs as much as the prompt is long
        match = self._cache.match(request)
        num_pages = -(-request.num_tokens // self._config.page_size)
        start = len(match.pages) * self._config.page_size
        num_lacking = num_pages - len(match.held) + len(self._running) - self._pool.num_free
        has_turn = budget.first_end(request, start, threshold) > start
        outcome = "admitted"
        if match.wait is not None or request.num_tokens - start > longest:
            outcome = "later"
        elif num_lacking > 0 or len(self._running) >= self._config.max_num_seqs:
            outcome = "blocked"
        elif not has_turn:
            outcome = "later"
        if outcome != "admitted":
            self._cache.drop(match)
            if outcome == "blocked" and has_turn:
                self._stuck = request, self._pool.num_free + num_lacking
                self._lacking = list(map(_order, (request, *self._running))), self._stuck[1]
            return outcome
        request.pages = array("q", self._cache.claim(request, match, num_pages))
        request.num_computed_tokens = start
        if request.num_tokens == request.num_prompt_tokens:  # a resumed answer finds its own pages: no hit of the prompt
            request.num_cached_tokens = start
            self._cache.count(request, match)
        request.begin()
        self._waiting.remove(request)
        insort(self._running, request, key=_order)
        self._plan_prefill(request, chunks, budget, threshold)
        return "admitted"

    def _finish(self, request: Request) -> None:
        (self._running if request.state == "running" else self._waiting).remove(request)
        del self._requests[request.request_id]
        self._drop_pages(request)
        request.state = "finished"

    def _drop_pages(self, request: Request) -> None:
        self._cache.release(request)
        request.pages = array("q")


def _order(request: Request) -> tuple[float, int]:
    return request.order


def _goes_before(request: Request, other: Request) -> bool:
    """Whether a request may take another's place: by its priority, and not only as it came earlier."""
    return request.priority < other.priority and request.order < other.order
