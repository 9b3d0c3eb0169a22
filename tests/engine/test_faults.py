"""What must hold when a step, the disk or a shutdown goes wrong: no lost token, no wrong page kept, no thread left."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ernie45.config.inputs import ModelInput
from ernie45.engine.expert_load import ExpertLoad
from ernie45.engine.page_copier import fingerprint
from ernie45.engine.request import Request
from ernie45.engine.tiers import PageTiers
from ernie45.model.cache import PagedKVCache
from ernie45.model.multimodal import ErnieModel
from tests.engine.conftest import GREEDY, answers, make_llm
from tests.engine.test_scheduler import make_request, make_scheduler, step

MakeInput = Callable[..., ModelInput]


def fail(*arguments: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("fault", [(place, moment) for place in ("execute", "prepare") for moment in range(1, 14)])
def test_a_step_planned_ahead_that_fails_loses_no_token(
    model: ErnieModel, prompts: dict, recomputed: dict, logprobs: int | None, fault: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Also not those of the step before it, nor the end of an answer behind which a surplus step was under way."""
    llm = make_llm(model, overlap=True)
    llm.submit(Request(request_id="a", inputs=prompts["text"], params=replace(GREEDY, logprobs=logprobs)))
    tokens, reasons, failures = [], [], 0
    for index in range(60):
        with monkeypatch.context() as patch:
            if index == fault[1]:
                patch.setattr(llm._runner, fault[0], fail)
            try:
                events = llm.step()
            except ZeroDivisionError:
                failures += 1
                continue
        tokens += [token for event in events for token in event.token_ids]
        reasons += [event.finish_reason for event in events if event.finish_reason]
        llm.check_integrity()
        if not llm.has_work:
            break
    assert tuple(tokens) == recomputed["text"]
    assert reasons == ["length"]
    llm.close()


def test_what_a_failed_step_did_not_compute_never_comes_to_disk(
    model: ErnieModel, prompts: dict, recomputed: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    llm = make_llm(model, overlap=True, num_pages=12, disk_cache_folder=tmp_path)
    llm.submit(Request(request_id="a", inputs=prompts["image"], params=GREEDY))
    with monkeypatch.context() as patch:
        patch.setattr(llm._runner, "execute", fail)
        llm.step()
        llm.abort("a")
        llm.submit(Request(request_id="b", inputs=prompts["mixed"], params=GREEDY))  # takes all pages
        with pytest.raises(ZeroDivisionError):
            llm.step()
    while llm.has_work:
        llm.step()
    llm.close()
    llm = make_llm(model, overlap=True, disk_cache_folder=tmp_path)
    assert answers(llm.generate([prompts["image"]], GREEDY)) == [recomputed["image"]]
    llm.close()


def test_a_page_that_is_gone_by_the_time_it_is_read_is_a_miss(make_input: MakeInput):
    class Gone:
        """A disk that answers at once, and has nothing."""

        def __contains__(self, key: object) -> bool:
            return True

        def __len__(self) -> int:
            return 0

        def touch(self, key: bytes) -> None: ...

        def fetch(self, key: bytes) -> "Future[bytes | None]":
            future: Future[bytes | None] = Future()
            future.set_result(None)
            return future

    scheduler = make_scheduler(tiers=PageTiers(0, Gone()))
    scheduler.add(make_request("a", make_input([12]), max_tokens=2))
    spans = [span for _ in range(4) for span in step(scheduler)[0]]
    assert spans == [("a", 0, 12), ("a", 12, 13)]


def test_pages_of_a_cache_with_rows_for_guesses_are_not_those_of_one_without(model: ErnieModel):
    def cache(**options: object) -> PagedKVCache:
        return PagedKVCache(model.config, **{"num_pages": 2, "page_size": 4, **options})

    found = {
        fingerprint(model, cache(page_size=size, dtype=dtype)) for size in (4, 8) for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(found) == 4
    wider = cache()
    wider.keys_LNSJK = torch.cat([wider.keys_LNSJK, wider.keys_LNSJK[:1]])  # as with_mtp makes it
    assert fingerprint(model, wider) not in found


def test_at_the_end_all_of_the_cache_comes_to_disk_however_slow_it_is(
    model: ErnieModel, prompts: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ernie45.engine.disk_pages._MAX_BACKLOG", 2)
    llm = make_llm(model, disk_cache_folder=tmp_path)
    llm.generate(list(prompts.values()), GREEDY)
    num_cached = llm.stats().num_cached_pages
    llm.close()
    assert num_cached > 20
    assert len(list(tmp_path.glob("*/*.page"))) == num_cached


def test_an_engine_ends_its_threads_also_when_its_last_step_failed(
    model: ErnieModel, prompts: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = set(threading.enumerate())
    llm = make_llm(model, overlap=True, disk_cache_folder=tmp_path)
    llm.submit(Request(request_id="a", inputs=prompts["text"], params=GREEDY))
    with monkeypatch.context() as patch:
        patch.setattr(llm._runner, "execute", fail)
        llm.step()
        with pytest.raises(ZeroDivisionError):
            llm.close()
    assert set(threading.enumerate()) <= before
    assert not list(tmp_path.glob("*/*.page")), "pages that were never computed"


def test_expert_load_may_be_asked_while_its_first_step_is_counted():
    load = ExpertLoad()

    class Slow:
        def tolist(self) -> list[list[int]]:
            load._totals_LE["vision"] = torch.zeros(1, 1)  # the worker goes on meanwhile
            return [[1]]

    load._totals_LE["text"] = Slow()  # pyright: ignore[reportArgumentType]
    assert load.tokens()["text"] == ((1,),)


def test_one_changed_value_of_one_weight_makes_other_pages(model: ErnieModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ernie45.engine.page_copier._NUM_SAMPLED", 1)
    other = copy.deepcopy(model)
    cache = PagedKVCache(model.config, num_pages=2, page_size=4)
    name, weight = max(other.named_parameters(), key=lambda item: item[1].numel())
    assert fingerprint(other, cache) == fingerprint(model, cache)
    with torch.no_grad():
        weight.flatten()[1] += 1e-3
    assert fingerprint(other, cache) != fingerprint(model, cache), name


def test_nothing_follows_an_abort_also_of_what_a_failed_call_could_not_tell(
    model: ErnieModel, prompts: dict, recomputed: dict, monkeypatch: pytest.MonkeyPatch
):
    llm = make_llm(model, overlap=True)
    llm.submit(Request(request_id="a", inputs=prompts["text"], params=replace(GREEDY, logprobs=1)))
    llm.step()
    with monkeypatch.context() as patch:
        patch.setattr(llm._runner, "prepare", fail)
        with pytest.raises(ZeroDivisionError):
            llm.step()
    llm.abort("a")
    assert not llm.has_work
    assert answers(llm.generate([prompts["image"]], GREEDY)) == [recomputed["image"]]
    llm.close()
