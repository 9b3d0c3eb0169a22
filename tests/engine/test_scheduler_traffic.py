"""The scheduler under random traffic, with a simulated KV cache, host memory and disk that remember what they hold."""

import pickle
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Request, StepOutput
from ernie45.engine.scheduler import Chunk, Scheduler
from ernie45.engine.tiers import PageCopy, PageTiers

MakeInput = Callable[..., ModelInput]


def make_request(
    name: str, inputs: ModelInput, max_tokens: int = 4, priority: int = 0, cache_salt: str | None = None, **params
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **params)
    return Request(request_id=name, inputs=inputs, params=params, priority=priority, cache_salt=cache_salt)


@dataclass
class SimulatedCache:
    """Remembers which token, position and picture each slot of the KV cache was last computed for, and copies pages."""

    page_size: int
    slots: dict[int, tuple] = field(default_factory=dict)
    host: dict[int, list] = field(default_factory=dict)
    disk: "SimulatedDisk | None" = None

    def copy(self, copies: list[PageCopy]) -> None:
        for kind, key, page, slot, data in copies:
            if kind == "store":
                self.host[slot] = self._page(page)
            elif kind == "load":
                self._fill(page, self.host[slot])
            elif kind == "restore":
                self._fill(page, pickle.loads(data))
            else:
                assert self.disk is not None
                self.disk.pages[key] = pickle.dumps(self._page(page) if kind == "archive" else self.host[slot])

    def run(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for index in range(chunk.start, chunk.end):
                self.slots[self._slot(chunk.request, index)] = self._content(chunk.request, index)

    def check(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for index in range(min(chunk.end, len(chunk.request.tokens))):
                content = self.slots[self._slot(chunk.request, index)]
                assert content == self._content(chunk.request, index), (chunk.request.request_id, index)

    def _page(self, page: int) -> list:
        return [self.slots.get(page * self.page_size + offset) for offset in range(self.page_size)]

    def _fill(self, page: int, content: list) -> None:
        self.slots.update({page * self.page_size + offset: value for offset, value in enumerate(content)})

    def _slot(self, request: Request, index: int) -> int:
        return request.pages[index // self.page_size] * self.page_size + index % self.page_size

    def _content(self, request: Request, index: int) -> tuple:
        picture = [(unit.key, index - unit.start) for unit in request.units if unit.start <= index < unit.end]
        token = request.tokens[index] if index < len(request.tokens) else drawn(request, index)
        return request.cache_salt, token, *request.positions(index, index + 1)[0].tolist(), *picture


@dataclass
class SimulatedDisk:
    """Reads that end later, or find the page damaged, whenever `luck` says so."""

    luck: random.Random
    pages: dict[bytes, bytes] = field(default_factory=dict)
    pending: list[tuple[Future, bytes]] = field(default_factory=list)

    def __contains__(self, key: object) -> bool:
        return key in self.pages

    def __len__(self) -> int:
        return len(self.pages)

    def touch(self, key: bytes) -> None:
        assert key in self.pages

    def fetch(self, key: bytes) -> Future:
        future: Future = Future()
        self.pending.append((future, key))
        self.advance()
        return future

    def advance(self, *, all_of_it: bool = False) -> None:
        while self.pending and (all_of_it or self.luck.random() < 0.6):
            future, key = self.pending.pop(0)
            if future.set_running_or_notify_cancel():
                damaged = self.luck.random() < 0.1
                future.set_result(None if damaged else self.pages[key])
                if damaged:
                    self.pages.pop(key)


def drawn(request: Request, index: int) -> int:
    """The simulated model's token at a place: a function of the request's beginning, so that equal prompts answer alike."""
    return (request.tokens[0] + 3 * index) % 80


@dataclass
class Traffic:
    """A scheduler with everything around it simulated; `depth` plans are under way at once."""

    scheduler: Scheduler
    memory: SimulatedCache
    config: EngineConfig
    depth: int
    live: dict[str, Request] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    plans: list[list[Chunk]] = field(default_factory=list)

    def add(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except RequestError:
            assert request.num_tokens >= self.scheduler.max_model_len
            return
        self.live[request.request_id], self.received[request.request_id] = request, 0

    def abort(self, number: int) -> None:
        if self.live:
            name = list(self.live)[number % len(self.live)]
            assert self.scheduler.abort(name)
            assert not self.scheduler.abort(name)
            del self.live[name]
            self.scheduler.check_integrity()

    def step(self) -> None:
        chunks = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if not chunks and not self.plans and self.memory.disk is not None:
            self.memory.disk.advance(all_of_it=self.scheduler.unfinished_fetch() is not None)
            return
        check_plan(self.scheduler, chunks, self.config, self.plans)
        self.memory.copy(self.scheduler.take_copies())
        self.memory.run(chunks)
        self.memory.check(chunks)
        if chunks:
            self.plans.append(chunks)
        if self.plans and (len(self.plans) >= self.depth or not chunks):
            self._update(self.plans.pop(0))

    def _update(self, chunks: list[Chunk]) -> None:
        tokens = [drawn(chunk.request, chunk.end) for chunk in chunks if chunk.samples]
        for event in self.scheduler.update(chunks, StepOutput(tokens)):
            self.received[event.request_id] += len(event.token_ids)
            if event.finish_reason is not None:
                request = self.live.pop(event.request_id)
                if event.finish_reason == "length":
                    assert self.received[event.request_id] == request.limit - request.num_prompt_tokens
        self.scheduler.check_integrity()


PARTS = st.lists(
    st.one_of(
        st.sampled_from([3, 8]),
        st.tuples(st.just("image"), st.sampled_from([(1, 4, 6), (1, 8, 8)]), st.integers(0, 1)),
        st.tuples(st.just("video"), st.sampled_from([(2, 2, 2), (4, 4, 4)]), st.integers(0, 1)),
    ),
    min_size=1,
    max_size=4,
)
OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1),
        "priority": st.integers(0, 2),
        "salt": st.sampled_from([None, None, "x"]),
        "stop": st.booleans(),
    }
)
ADD = st.tuples(st.just("add"), PARTS, st.integers(1, 30), OPTIONS)
STEP = st.tuples(st.just("step"), st.integers(1, 8))
ABORT = st.tuples(st.just("abort"), st.integers(0, 10))
ACTIONS = st.lists(st.one_of(ADD, ADD, STEP, ADD, ABORT), min_size=8, max_size=30)


def check_plan(scheduler: Scheduler, chunks: list[Chunk], config: EngineConfig, under_way: list[list[Chunk]]) -> None:
    """Budget, picture borders, one chunk per request, something planned if there is work."""
    assert len({chunk.request.request_id for chunk in chunks}) == len(chunks) <= config.max_num_seqs
    total = sum(chunk.end - chunk.start for chunk in chunks)
    prefills = [chunk for chunk in chunks if chunk.end - chunk.start > 1 or not chunk.samples]
    for chunk in chunks:
        assert chunk.start < chunk.end == chunk.request.num_computed_tokens
        drawing = chunk.request.num_pending_tokens
        assert chunk.end == chunk.request.num_tokens + drawing - 1 if chunk.samples else chunk.end < chunk.request.num_tokens
        assert not any(unit.start < chunk.end < unit.end for unit in chunk.request.units)
    if total > config.max_num_batched_tokens:
        first = prefills[0]
        unit = next(unit for unit in first.request.units if unit.end == first.end)
        assert unit.start <= first.start
        assert len(prefills) == 1
    reading = scheduler.unfinished_fetch() is not None
    assert chunks or under_way or reading or not scheduler.has_work, "work, but nothing planned"


@settings(max_examples=200, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
@given(
    actions=ACTIONS,
    num_pages=st.integers(10, 30),
    options=st.fixed_dictionaries(
        {
            "max_num_batched_tokens": st.integers(4, 40),
            "max_num_seqs": st.integers(1, 4),
            "prefix_cache": st.booleans(),
            "max_prefill_tokens_beside_decodes": st.sampled_from([None, 1, 6]),
            "max_encoder_tokens": st.sampled_from([None, 4, 20]),
            "long_prefill_token_threshold": st.sampled_from([None, 10]),
            "max_long_partial_prefills": st.integers(1, 2),
        }
    ),
    world=st.fixed_dictionaries(
        {"depth": st.integers(1, 2), "host": st.integers(0, 6), "disk": st.booleans(), "luck": st.integers(0, 100)}
    ),
)
def test_random_traffic(make_input: MakeInput, actions: list, num_pages: int, options: dict, world: dict):
    config = EngineConfig(page_size=4, num_pages=num_pages, **options)
    disk = SimulatedDisk(random.Random(world["luck"])) if world["disk"] else None
    tiers = PageTiers(world["host"], disk)
    scheduler = Scheduler(config, num_pages, max_model_len=256, tiers=tiers)
    traffic = Traffic(scheduler, SimulatedCache(4, disk=disk), config, world["depth"])
    for index, (kind, *values) in enumerate(actions):
        if kind == "add":
            chosen = values[2]
            inputs = make_input(values[0], seed=chosen["seed"])
            stop = ((int(inputs.token_ids[0]) + 3 * (len(inputs) + 2)) % 80,) if chosen["stop"] else ()
            traffic.add(make_request(str(index), inputs, values[1], chosen["priority"], chosen["salt"], stop_token_ids=stop))
        elif kind == "abort":
            traffic.abort(values[0])
        else:
            for _ in range(values[0]):
                traffic.step()
    for _ in range(3000):
        if not scheduler.has_work and not traffic.plans:
            break
        traffic.step()
    assert not traffic.live, "a request never ended"
    assert scheduler.stats().num_free_pages == num_pages
    assert scheduler.stats().num_hit_tokens >= scheduler.stats().num_host_hit_tokens + scheduler.stats().num_disk_hit_tokens
