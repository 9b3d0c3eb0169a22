"""Who takes whose place: the urgent those of the less urgent, but not for ever."""

from collections.abc import Callable

import pytest

from ernie45.config.inputs import ModelInput
from ernie45.engine.request import StepOutput
from tests.engine.test_scheduler import make_request, make_scheduler, step

MakeInput = Callable[..., ModelInput]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("lacking", ["pages", "seats"])
def test_the_urgent_take_the_place_of_those_who_run(make_input: MakeInput, lacking: str, overlap: bool):
    scheduler = make_scheduler(num_pages=13 if lacking == "pages" else 64, max_num_seqs=8 if lacking == "pages" else 3)
    for index in range(3):
        scheduler.add(make_request(f"batch {index}", make_input([15], seed=index), max_tokens=40, priority=1 + index % 2))
    pending = [scheduler.schedule()] if overlap else []
    for _ in range(3):
        pending.append(scheduler.schedule())
        done = pending.pop(0)
        scheduler.update(done, StepOutput([7] * sum(chunk.samples for chunk in done)))
    scheduler.add(make_request("urgent", make_input([10], seed=9), max_tokens=2))
    began: list[int] = []
    events: dict[str, int] = {}
    for index in range(300):
        pending.append(scheduler.schedule())
        began += [index for chunk in pending[-1] if chunk.request.request_id == "urgent" and chunk.start == 0]
        done = pending.pop(0)
        for event in scheduler.update(done, StepOutput([7] * sum(chunk.samples for chunk in done))):
            events[event.request_id] = events.get(event.request_id, 0) + 1
        scheduler.check_integrity()
    assert began == [1], "it waits for one step, and not for an answer of another"
    assert events["urgent"] == 2
    assert not scheduler.has_work


def test_the_urgent_do_not_take_the_place_of_their_equals_nor_what_does_not_suffice(make_input: MakeInput):
    scheduler = make_scheduler(num_pages=16, prefix_cache=False)
    scheduler.add(make_request("large", make_input([40]), max_tokens=8))
    scheduler.add(make_request("small", make_input([4], seed=1), max_tokens=8, priority=1))
    step(scheduler)
    scheduler.add(make_request("too large", make_input([30], seed=2), max_tokens=8))
    for _ in range(4):
        assert len(step(scheduler)[0]) == 2
    assert scheduler.stats().num_preemptions == 0


def test_who_has_waited_long_goes_before_the_urgent(make_input: MakeInput, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("ernie45.engine.scheduler.monotonic", lambda: now)
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request("patient", make_input([5]), max_tokens=1, priority=1))
    for now in range(0, 200, 40):
        scheduler.add(make_request(f"urgent at {now}", make_input([5], seed=now + 1), max_tokens=1))
    order = []
    while scheduler.has_work:
        order += [name for name, *_ in step(scheduler)[0]]
    assert order == ["urgent at 0", "urgent at 40", "patient", "urgent at 80", "urgent at 120", "urgent at 160"]


def test_a_seat_is_taken_from_one_with_a_single_page(make_input: MakeInput):
    scheduler = make_scheduler(max_num_seqs=4)
    for index in range(4):
        scheduler.add(make_request(str(index), make_input([2], seed=index), max_tokens=40, priority=int(index == 3)))
    step(scheduler)
    scheduler.add(make_request("urgent", make_input([10], seed=9), max_tokens=2))
    assert ("urgent", 0, 10) in [span for _ in range(2) for span in step(scheduler)[0]]
