"""The scheduler's rules one by one, then all together under random traffic with a simulated KV cache."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Event, Request, StepOutput
from ernie45.engine.scheduler import Chunk, Scheduler

MakeInput = Callable[..., ModelInput]
IMAGE = ("image", (1, 8, 8), 1)  # 16 tokens
VIDEO = ("video", (6, 4, 4), 2)  # 3 units of 4 tokens


def make_scheduler(*, num_pages: int = 64, **options) -> Scheduler:
    return Scheduler(EngineConfig(**{"page_size": 4, "max_num_seqs": 4, **options}), num_pages, max_model_len=256)


def make_request(name: str, inputs: ModelInput, max_tokens: int = 4, **params) -> Request:
    return Request(request_id=name, inputs=inputs, params=SamplingParams(max_tokens=max_tokens, **params))


def step(scheduler: Scheduler, token: int = 7) -> tuple[list[tuple[str, int, int]], list[Event]]:
    chunks = scheduler.schedule()
    events = scheduler.update(chunks, StepOutput([token] * sum(chunk.samples for chunk in chunks)))
    scheduler.check_integrity()
    return [(chunk.request.request_id, chunk.start, chunk.end) for chunk in chunks], events


def test_a_long_prompt_is_cut_by_the_budget_and_decoding_goes_on_beside_it(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add(make_request("a", make_input([3]), max_tokens=8))
    step(scheduler)
    scheduler.add(make_request("b", make_input([25], seed=1)))
    assert [step(scheduler)[0] for _ in range(4)] == [
        [("a", 3, 4), ("b", 0, 9)],
        [("a", 4, 5), ("b", 9, 18)],
        [("a", 5, 6), ("b", 18, 25)],
        [("a", 6, 7), ("b", 25, 26)],
    ]


def test_chunks_end_at_picture_borders(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add(make_request("a", make_input([5, IMAGE, 2, VIDEO, 1])))
    spans = [step(scheduler)[0] for _ in range(5)]
    # 5 text and a start marker | 16 image tokens, more than the budget | end marker, 2 text, start, one unit | two units ...
    assert spans[:4] == [[("a", 0, 6)], [("a", 6, 22)], [("a", 22, 30)], [("a", 30, 40)]]


def test_a_picture_that_fits_the_budget_is_not_starved_by_decoding(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=16)
    scheduler.add(make_request("a", make_input([3]), max_tokens=50))
    step(scheduler)
    scheduler.add(make_request("b", make_input([IMAGE])))
    assert step(scheduler)[0] == [("a", 3, 4), ("b", 0, 1)]
    assert step(scheduler)[0] == [("a", 4, 5), ("b", 1, 17)]


def test_only_one_prefill_exceeds_the_budget(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=10)
    for name in "ab":
        scheduler.add(make_request(name, make_input([IMAGE])))
    assert step(scheduler)[0] == [("a", 0, 1), ("b", 0, 1)]
    assert step(scheduler)[0] == [("a", 1, 17)]


def test_first_come_first_served(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=8, max_num_seqs=2, prefix_cache=False)
    for name, length in (("a", 8), ("b", 26), ("c", 2)):
        scheduler.add(make_request(name, make_input([length])))
    log = []
    while scheduler.has_work:
        log += [name for name, start, _ in step(scheduler)[0] if start == 0]
        assert log != ["a", "c"], "c fits beside a and b does not, but b came first"
    assert log == ["a", "b", "c"]


def test_no_more_than_max_num_seqs_run(make_input: MakeInput):
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_request(name, make_input([2])))
    step(scheduler)
    assert (scheduler.stats().num_running, scheduler.stats().num_waiting) == (2, 1)


def test_the_youngest_makes_room_and_later_resumes(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=6, prefix_cache=False)
    scheduler.add(make_request("a", make_input([7]), max_tokens=10))
    scheduler.add(make_request("b", make_input([7], seed=1), max_tokens=10))
    events: list[Event] = []
    log = []
    while scheduler.has_work:
        spans, new = step(scheduler)
        log += spans
        events += new
    assert scheduler.stats().num_preemptions == 1
    assert sum(event.request_id == "b" for event in events) == 10
    resumed = [span for span in log if span[0] == "b" and span[1] == 0]
    assert len(resumed) == 2
    assert resumed[1][2] > 7  # recomputes what it had generated too


def test_a_cached_prompt_is_not_computed_again_but_for_its_end(make_input: MakeInput):
    scheduler = make_scheduler()
    inputs = make_input([3, IMAGE, 3])  # 24 tokens, 6 pages
    for name in "ab":
        scheduler.add(make_request(name, inputs, max_tokens=1))
        spans, events = step(scheduler)
    assert spans == [("b", 20, 24)]
    assert events[0].num_cached_tokens == 20
    assert scheduler.stats().num_hit_tokens == 20


@pytest.mark.parametrize(
    ("parts", "num_cached"),
    [
        ([3, ("image", (1, 8, 8), 1), 7], 24),  # the same picture and the same text
        ([3, ("image", (1, 8, 8), 9), 7], 4),  # another picture of the same size, after 3 tokens and the start marker
        ([4, ("image", (1, 8, 8), 1), 6], 0),  # the same picture one token later
        ([3, ("video", (2, 8, 8), 1), 7], 0),  # another start marker
    ],
)
def test_a_page_is_found_by_its_pictures_too(make_input: MakeInput, parts: list, num_cached: int):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", make_input([3, IMAGE, 8]), max_tokens=1))
    step(scheduler)
    scheduler.add(make_request("b", make_input(parts), max_tokens=1))
    assert step(scheduler)[1][0].num_cached_tokens == num_cached


def test_the_same_tokens_at_other_positions_are_other_pages(make_input: MakeInput):
    scheduler = make_scheduler()
    inputs = make_input([12])
    scheduler.add(make_request("a", inputs, max_tokens=1))
    step(scheduler)
    moved = ModelInput(
        token_ids=inputs.token_ids,
        is_vision=inputs.is_vision,
        positions=inputs.positions + 1,
        patches=inputs.patches,
        next_position=inputs.next_position + 1,
    )
    scheduler.add(make_request("b", moved, max_tokens=1))
    assert step(scheduler)[1][0].num_cached_tokens == 0


def test_a_second_turn_finds_the_first_answer(make_input: MakeInput):
    scheduler = make_scheduler()
    first = make_input([6])
    scheduler.add(make_request("a", first, max_tokens=7))
    while scheduler.has_work:
        step(scheduler, token=7)
    ids = np.concatenate([first.token_ids, [7] * 7, [5, 5, 5]])
    second = ModelInput(
        token_ids=ids,
        is_vision=np.zeros(16, dtype=bool),
        positions=np.repeat(np.arange(16)[:, None], 3, axis=1),
        patches=first.patches,
        next_position=16,
    )
    scheduler.add(make_request("b", second, max_tokens=1))
    assert step(scheduler)[1][0].num_cached_tokens == 12


def test_stop_length_and_context(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=4)
    scheduler.add(make_request("stop", make_input([2]), stop_token_ids=(7,)))
    scheduler.add(make_request("length", make_input([2]), max_tokens=1))
    events = step(scheduler)[1]
    assert [(event.token_ids, event.finish_reason, event.stop_token_id) for event in events] == [
        ((), "stop", 7),
        ((7,), "length", None),
    ]
    scheduler.add(make_request("context", make_input([13]), max_tokens=100))
    total = 0
    while scheduler.has_work:
        total += len(step(scheduler)[1])
    assert total == 3  # 4 pages of 4 tokens
    with pytest.raises(RequestError, match=r"16 tokens\) must be shorter than the context of 16 tokens"):
        scheduler.add(make_request("long", make_input([16])))


def test_abort_frees_pages_at_any_time(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=16, max_num_seqs=1, prefix_cache=False)
    for name in "ab":
        scheduler.add(make_request(name, make_input([9])))
    chunks = scheduler.schedule()
    assert scheduler.abort("a")
    assert scheduler.update(chunks, StepOutput([7])) == []
    scheduler.check_integrity()
    assert scheduler.abort("b")
    assert not scheduler.abort("b")
    assert not scheduler.has_work
    assert scheduler.stats().num_free_pages == 16


def test_an_id_in_use_is_refused(make_input: MakeInput):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", make_input([2])))
    with pytest.raises(RequestError, match="request_id"):
        scheduler.add(make_request("a", make_input([2])))


@dataclass
class SimulatedCache:
    """Remembers which token, position and picture each slot of the KV cache was last computed for."""

    page_size: int
    slots: dict[int, tuple] = field(default_factory=dict)

    def run(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for index in range(chunk.start, chunk.end):
                self.slots[self._slot(chunk.request, index)] = self._content(chunk.request, index)
        for chunk in chunks:
            for index in range(chunk.end):
                content = self.slots[self._slot(chunk.request, index)]
                assert content == self._content(chunk.request, index), (chunk.request.request_id, index)

    def _slot(self, request: Request, index: int) -> int:
        return request.pages[index // self.page_size] * self.page_size + index % self.page_size

    def _content(self, request: Request, index: int) -> tuple:
        picture = [(unit.key, index - unit.start) for unit in request.units if unit.start <= index < unit.end]
        return request.tokens[index], *request.positions(index, index + 1)[0].tolist(), *picture


PARTS = st.lists(
    st.one_of(
        st.sampled_from([3, 8]),
        st.tuples(st.just("image"), st.sampled_from([(1, 4, 6), (1, 8, 8)]), st.integers(0, 1)),
        st.tuples(st.just("video"), st.sampled_from([(2, 2, 2), (4, 4, 4)]), st.integers(0, 1)),
    ),
    min_size=1,
    max_size=4,
)
ADD = st.tuples(st.just("add"), PARTS, st.integers(1, 30), st.integers(0, 1))
STEP = st.tuples(st.just("step"), st.integers(1, 8))
ABORT = st.tuples(st.just("abort"), st.integers(0, 10))
ACTIONS = st.lists(st.one_of(ADD, ADD, STEP, ADD, ABORT), min_size=8, max_size=30)


def check_plan(scheduler: Scheduler, chunks: list[Chunk], config: EngineConfig) -> None:
    """Budget, contiguity, picture borders, one chunk per request."""
    assert len({chunk.request.request_id for chunk in chunks}) == len(chunks) <= config.max_num_seqs
    total = sum(chunk.end - chunk.start for chunk in chunks)
    prefills = [chunk for chunk in chunks if chunk.request.num_tokens - chunk.start > 1]
    for chunk in chunks:
        assert chunk.start == chunk.request.num_computed_tokens < chunk.end <= chunk.request.num_tokens
        assert chunk.samples == (chunk.end == chunk.request.num_tokens)
        assert not any(unit.start < chunk.end < unit.end for unit in chunk.request.units)
    if total > config.max_num_batched_tokens:
        first = prefills[0]
        unit = next(unit for unit in first.request.units if unit.end == first.end)
        assert unit.start <= first.start
        assert len(prefills) == 1
    assert chunks or not scheduler.has_work, "work, but nothing planned"


@settings(max_examples=200, deadline=None)
@given(
    actions=ACTIONS,
    num_pages=st.integers(10, 30),
    options=st.fixed_dictionaries(
        {
            "max_num_batched_tokens": st.integers(4, 40),
            "max_num_seqs": st.integers(1, 4),
            "prefix_cache": st.booleans(),
        }
    ),
)
def test_random_traffic(make_input: MakeInput, actions: list, num_pages: int, options: dict):
    config = EngineConfig(page_size=4, num_pages=num_pages, **options)
    scheduler, memory = Scheduler(config, num_pages, max_model_len=256), SimulatedCache(4)
    live: dict[str, Request] = {}
    received: dict[str, int] = {}

    def run_step() -> None:
        chunks = scheduler.schedule()
        scheduler.check_integrity()
        check_plan(scheduler, chunks, config)
        memory.run(chunks)
        drawn = [len(chunk.request.tokens) % 80 for chunk in chunks if chunk.samples]
        for event in scheduler.update(chunks, StepOutput(drawn)):
            received[event.request_id] += len(event.token_ids)
            if event.finish_reason is not None:
                request = live.pop(event.request_id)
                assert received[event.request_id] == request.limit - request.num_prompt_tokens
        scheduler.check_integrity()

    for index, (kind, *values) in enumerate(actions):
        if kind == "add":
            request = make_request(str(index), make_input(values[0], seed=values[2]), max_tokens=values[1])
            try:
                scheduler.add(request)
            except RequestError:
                assert request.num_tokens >= num_pages * 4
                continue
            live[request.request_id], received[request.request_id] = request, 0
        elif kind == "abort" and live:
            name = list(live)[values[0] % len(live)]
            assert scheduler.abort(name)
            del live[name]
        elif kind == "step":
            for _ in range(values[0]):
                run_step()
    for _ in range(2000):
        if not scheduler.has_work:
            break
        run_step()
    assert not live, "a request never ended"
    assert scheduler.stats().num_free_pages == num_pages
