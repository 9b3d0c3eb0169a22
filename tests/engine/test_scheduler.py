"""The scheduler's rules one by one, then all together under random traffic with a simulated KV cache."""

from collections.abc import Callable

import numpy as np
import pytest

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.prefix_cache import Match
from ernie45.engine.request import Event, Request, StepOutput
from ernie45.engine.scheduler import Scheduler
from ernie45.engine.tiers import PageTiers

MakeInput = Callable[..., ModelInput]
IMAGE = ("image", (1, 8, 8), 1)  # 16 tokens
VIDEO = ("video", (6, 4, 4), 2)  # 3 units of 4 tokens


def make_scheduler(*, num_pages: int = 64, tiers: PageTiers | None = None, **options) -> Scheduler:
    return Scheduler(EngineConfig(**{"page_size": 4, "max_num_seqs": 4, **options}), num_pages, max_model_len=256, tiers=tiers)


def make_request(
    name: str, inputs: ModelInput, max_tokens: int = 4, priority: int = 0, cache_salt: str | None = None, **params
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **params)
    return Request(request_id=name, inputs=inputs, params=params, priority=priority, cache_salt=cache_salt)


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
    scheduler = make_scheduler(max_num_batched_tokens=10, max_long_partial_prefills=2)
    for name in "ab":
        scheduler.add(make_request(name, make_input([("image", (1, 8, 8), ord(name))])))
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


def test_the_urgent_go_first_and_the_least_urgent_makes_room(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=6, max_num_seqs=2, prefix_cache=False)
    for name, priority in (("a", 1), ("b", 1), ("c", 0)):
        scheduler.add(make_request(name, make_input([7]), max_tokens=10, priority=priority))
    began: list[str] = []
    ended: list[str] = []
    while scheduler.has_work:
        spans, events = step(scheduler)
        began += [name for name, start, _ in spans if start == 0]
        ended += [event.request_id for event in events if event.finish_reason]
    assert began[:2] == ["c", "a"]
    assert ended == ["c", "a", "b"]
    assert scheduler.stats().num_preemptions > 0


@pytest.mark.parametrize("field", ["adapter_hash", "cache_salt"])
def test_pages_are_shared_only_under_one_salt_and_one_adapter(make_input: MakeInput, field: str):
    scheduler = make_scheduler()
    cached = []
    for name, value in zip("abcde", (None, "x", "y", "x", ""), strict=True):
        request = make_request(name, make_input([12]), max_tokens=1)
        setattr(request, field, value)
        scheduler.add(request)
        cached.append(step(scheduler)[1][0].num_cached_tokens)
    assert cached == [0, 0, 0, 8, 0]


def test_a_salt_is_in_the_keys_of_pictures(make_input: MakeInput):
    plain, salted = (make_request("a", make_input([IMAGE]), cache_salt=salt) for salt in (None, "x"))
    assert plain.units[0].key != salted.units[0].key


def test_a_short_prompt_overtakes_long_ones_and_does_not_stop_them(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=16)
    for name, length in (("a", 60), ("b", 60), ("c", 5)):
        scheduler.add(make_request(name, make_input([length], seed=length), max_tokens=1))
    assert step(scheduler)[0] == [("a", 0, 11), ("c", 0, 5)]  # half for the long one, and what is left over
    log = []
    index = 0
    while scheduler.has_work:
        if index < 5:  # a stream of short ones
            scheduler.add(make_request(f"s{index}", make_input([8], seed=index), max_tokens=1))
        spans, _ = step(scheduler)
        log += [spans]
        index += 1
    long_spans = [span for spans in log for span in spans if span[0] == "a"]
    assert all(end - start >= 8 for _, start, end in long_spans[:-1]), "the stream does not stop the long prompt"
    assert all(any(span[0] == f"s{index}" for span in log[index]) for index in range(5)), "nor the long one the stream"


def test_prompts_leave_running_answers_their_pace(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=64, max_prefill_tokens_beside_decodes=8)
    scheduler.add(make_request("a", make_input([2]), max_tokens=50))
    step(scheduler)
    scheduler.add(make_request("b", make_input([40], seed=1)))
    assert step(scheduler)[0] == [("a", 2, 3), ("b", 0, 8)]
    scheduler.abort("a")
    assert step(scheduler)[0] == [("b", 8, 40)]


def test_chunks_beside_answers_get_shorter_as_context_makes_tokens_dearer(make_input: MakeInput):
    config = EngineConfig(page_size=4, max_num_seqs=4, max_num_batched_tokens=256, max_prefill_tokens_beside_decodes=64)
    scheduler = Scheduler(config, 200, 800, context_of_double=100)
    scheduler.add(make_request("a", make_input([2]), max_tokens=99))
    step(scheduler)
    scheduler.add(make_request("b", make_input([400], seed=1)))
    spans = [step(scheduler)[0][1] for _ in range(6)]
    lengths = [end - start for _, start, end in spans]
    assert lengths == sorted(lengths, reverse=True), lengths
    # What a long prompt leaves to others and gets back is two parts of a chunk, each of 16 tokens at least.
    assert all(end - start <= max(32, 64 / (1 + start / 100)) for _, start, end in spans), spans
    assert min(lengths) >= 16, lengths
    scheduler.abort("a")
    assert step(scheduler)[0] == [("b", spans[-1][2], 400)], "alone, nobody waits for it"


@pytest.mark.parametrize(("max_encoder_tokens", "began"), [(48, 3), (40, 2), (4, 1)])
def test_several_pictures_are_encoded_in_one_step_within_a_budget(make_input: MakeInput, max_encoder_tokens: int, began: int):
    scheduler = make_scheduler(max_num_batched_tokens=64, max_encoder_tokens=max_encoder_tokens)
    for name in "abc":
        scheduler.add(make_request(name, make_input([("image", (1, 8, 8), ord(name))], seed=ord(name))))
    spans, _ = step(scheduler)
    if max_encoder_tokens == 4:  # smaller than any picture: they still run, one a step
        assert spans == [("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]
        spans, _ = step(scheduler)
    assert sum(end == 18 or end == 17 for _, _, end in spans) == began


def test_pictures_that_are_encoded_already_cost_no_budget(make_input: MakeInput):
    config = EngineConfig(page_size=4, max_num_seqs=4, max_encoder_tokens=16, prefix_cache=False)
    for known, began in ((False, 1), (True, 2)):
        scheduler = Scheduler(config, 64, 256, is_encoded=lambda key, known=known: known)
        for name in "ab":
            scheduler.add(make_request(name, make_input([("image", (1, 8, 8), ord(name))])))
        assert sum(end == 18 for _, _, end in step(scheduler)[0]) == began


def test_one_computes_what_many_wait_for(make_input: MakeInput):
    """Equal beginnings: computed once, also by requests that come together; within one step where it fits in one."""
    scheduler = make_scheduler(max_num_batched_tokens=16)
    for name in "abcd":
        scheduler.add(make_request(name, make_input([30]), max_tokens=1))
    assert step(scheduler)[0] == [("a", 0, 16)]
    assert step(scheduler)[0] == [("a", 16, 30), ("b", 28, 30)]
    assert step(scheduler)[0] == [("c", 28, 30), ("d", 28, 30)]


def test_who_waits_for_an_aborted_leader_leads(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=16)
    for name in "ab":
        scheduler.add(make_request(name, make_input([30]), max_tokens=1))
    assert step(scheduler)[0] == [("a", 0, 16)]
    scheduler.abort("a")
    assert step(scheduler)[0] == [("b", 16, 30)]


def test_who_waits_for_another_is_overtaken(make_input: MakeInput):
    scheduler = make_scheduler(max_num_batched_tokens=16)
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        scheduler.add(make_request(name, make_input([30 if seed == 0 else 4], seed=seed), max_tokens=1))
    assert step(scheduler)[0] == [("a", 0, 12), ("c", 0, 4)]


def test_the_next_step_is_planned_while_one_runs(make_input: MakeInput):
    """Two plans under way: the second counts on the token of the first, and never goes past an answer's end."""
    scheduler = make_scheduler()
    scheduler.add(make_request("a", make_input([5]), max_tokens=3, stop_token_ids=(9,)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert [(chunk.start, chunk.end) for chunk in (*first, *second)] == [(0, 5), (5, 6)]
    scheduler.check_integrity()
    assert scheduler.update(first, StepOutput([7]))[0].token_ids == (7,)
    third = scheduler.schedule()
    assert [(chunk.start, chunk.end) for chunk in third] == [(6, 7)]
    scheduler.update(second, StepOutput([8]))
    assert scheduler.schedule() == []
    (event,) = scheduler.update(third, StepOutput([6]))
    assert event.finish_reason == "length"
    scheduler.check_integrity()


def test_a_token_after_the_stop_is_surplus(make_input: MakeInput):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", make_input([5]), max_tokens=9, stop_token_ids=(9,)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.update(first, StepOutput([9]))[0].finish_reason == "stop"
    assert not scheduler.has_work
    assert scheduler.update(second, StepOutput([8])) == []
    scheduler.check_integrity()


def test_after_a_failed_step_nothing_of_the_cache_is_used(make_input: MakeInput):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", make_input([12]), max_tokens=2))
    scheduler.schedule()
    scheduler.reset()
    scheduler.check_integrity()
    assert step(scheduler)[0] == [("a", 0, 12)]


def test_who_lacks_pages_is_looked_up_again_only_when_there_are_more(make_input: MakeInput, monkeypatch: pytest.MonkeyPatch):
    """A look costs as much as the prompt is long, and nothing changes from step to step."""
    scheduler = make_scheduler(num_pages=40)
    scheduler.add(make_request("a", make_input([100]), max_tokens=30))
    step(scheduler)
    scheduler.add(make_request("b", make_input([90], seed=1), max_tokens=2))
    match, num_looks, log = scheduler._cache.match, 0, []

    def counted(request: Request) -> Match:
        nonlocal num_looks
        num_looks += 1
        return match(request)

    monkeypatch.setattr(scheduler._cache, "match", counted)
    while scheduler.has_work:
        log += [name for name, start, _ in step(scheduler)[0] if start == 0]
    assert log == ["b"]
    assert num_looks == 2
