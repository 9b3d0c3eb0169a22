"""Steps planned ahead, pages from lower tiers, failed steps, and random traffic over all of it: the same tokens as alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Request
from ernie45.model.multimodal import ErnieModel
from tests.engine.conftest import GREEDY, NUM_NEW, PROMPTS, answers, make_llm, page_bytes


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7, "max_num_seqs": 3}, {"num_pages": 20}])
def test_overlap_gives_the_same_tokens(model: ErnieModel, prompts: dict, recomputed: dict, options: dict):
    llm = make_llm(model, overlap=True, **options)
    assert answers(llm.generate(list(prompts.values()), GREEDY)) == list(recomputed.values())
    params = [SamplingParams(max_tokens=NUM_NEW, temperature=1.3, top_p=0.9, seed=seed) for seed in range(len(prompts))]
    ahead = answers(llm.generate(list(prompts.values()), params))
    assert ahead == answers(make_llm(model, overlap=False).generate(list(prompts.values()), params))
    assert not llm.has_work
    assert llm.stats().num_free_pages == llm.stats().num_pages
    llm.close()


def test_overlap_has_a_step_under_way_and_drops_what_follows_a_stop(model: ErnieModel, prompts: dict, recomputed: dict):
    llm = make_llm(model, overlap=True)
    answer = recomputed["text"]
    params = replace(GREEDY, stop_token_ids=(answer[4],))
    llm.submit(Request(request_id="a", inputs=prompts["text"], params=params))
    assert llm.step() == []
    assert llm.step()[0].token_ids == (answer[0],)
    tokens = [token for _ in range(10) for event in llm.step() for token in event.token_ids]
    assert tuple(tokens) == answer[1 : answer.index(answer[4])]
    assert not llm.has_work
    llm.close()


def test_overlap_with_requests_that_need_the_host(model: ErnieModel, prompts: dict):
    params = [
        replace(GREEDY, logprobs=2),
        replace(GREEDY, repetition_penalty=1.5),
        replace(GREEDY, prompt_logprobs=1),
        GREEDY,
        replace(GREEDY, min_tokens=3, stop_token_ids=(5,)),
        replace(GREEDY, bad_words=((7,), (8, 9))),
    ]
    expected = make_llm(model, max_num_batched_tokens=20, max_num_seqs=4).generate(list(prompts.values()), params)
    llm = make_llm(model, max_num_batched_tokens=20, max_num_seqs=4, overlap=True)
    found = llm.generate(list(prompts.values()), params)
    assert answers(found) == answers(expected)
    assert [item.prompt_logprobs is None for item in found] == [item.prompt_logprobs is None for item in expected]
    assert found[0].logprobs is not None
    llm.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_after_a_failed_step_requests_begin_anew(
    model: ErnieModel, prompts: dict, recomputed: dict, overlap: bool, monkeypatch: pytest.MonkeyPatch
):
    llm = make_llm(model, overlap=overlap, host_cache_bytes=1 << 20)
    llm.submit(Request(request_id="a", inputs=prompts["mixed"], params=GREEDY))
    llm.step()
    with monkeypatch.context() as patch:
        patch.setattr(llm._runner, "execute", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            [llm.step() for _ in range(3)]
    llm.check_integrity()
    events = []
    while llm.has_work:
        events += llm.step()
    assert [token for event in events for token in event.token_ids] == list(recomputed["mixed"])[-len(events) :]
    (again,) = llm.generate([prompts["mixed"]], GREEDY)
    assert again.token_ids == recomputed["mixed"]
    llm.close()


@pytest.mark.parametrize("tier", ["host", "disk", "both"])
@pytest.mark.parametrize("overlap", [False, True])
def test_pages_come_back_from_lower_tiers(
    model: ErnieModel, prompts: dict, recomputed: dict, tier: str, overlap: bool, tmp_path: Path
):
    options = {
        "num_pages": 24,
        "overlap": overlap,
        "host_cache_bytes": 0 if tier == "disk" else page_bytes(model) * (12 if tier == "both" else 200),
        "disk_cache_folder": None if tier == "host" else tmp_path,
    }
    llm = make_llm(model, **options)
    for name in (*prompts, *reversed(prompts)):  # the latest are still above, the earliest at the bottom
        assert answers(llm.generate([prompts[name]], GREEDY)) == [recomputed[name]]
        if llm._disk is not None:
            llm._disk.drain()
    stats = llm.stats()
    assert (stats.num_host_hit_tokens > 0) == (tier != "disk")
    assert (stats.num_disk_hit_tokens > 0) == (tier != "host")
    assert stats.num_hit_tokens >= stats.num_host_hit_tokens + stats.num_disk_hit_tokens
    llm.close()
    if tier != "host":  # and another day
        llm = make_llm(model, **options)
        (answer,) = llm.generate([prompts["mixed"]], GREEDY)
        assert answer.token_ids == recomputed["mixed"]
        assert answer.num_cached_tokens == (len(prompts["mixed"]) - 1) // 4 * 4
        assert llm.stats().num_disk_hit_tokens == answer.num_cached_tokens
        llm.close()


def test_pages_of_other_weights_are_not_found(model: ErnieModel, config: ModelConfig, prompts: dict, tmp_path: Path):
    llm = make_llm(model, disk_cache_folder=tmp_path)
    llm.generate([prompts["mixed"]], GREEDY)
    llm.close()
    other = ErnieModel(config)
    other.init_weights(torch.Generator().manual_seed(2))
    llm = make_llm(other, disk_cache_folder=tmp_path)
    assert llm.generate([prompts["mixed"]], GREEDY)[0].num_cached_tokens == 0
    llm.close()


def test_salts_keep_features_apart(model: ErnieModel, prompts: dict):
    llm = make_llm(model)
    for index, salt in enumerate((None, "x", "x", "y")):
        llm.submit(Request(request_id=str(index), inputs=prompts["image"], params=GREEDY, cache_salt=salt))
        while llm.has_work:
            llm.step()
    assert llm.stats().num_encoded_units == 3


TRAFFIC = st.fixed_dictionaries(
    {
        "name": st.sampled_from(list(PROMPTS)),
        "delay": st.integers(0, 4),
        "priority": st.integers(0, 1),
        "salt": st.sampled_from([None, None, "x"]),
        "aborted_after": st.sampled_from([None, None, None, 3, 9]),
    }
)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    arrivals=st.lists(TRAFFIC, min_size=2, max_size=8),
    options=st.fixed_dictionaries(
        {
            "num_pages": st.integers(16, 40),
            "max_num_seqs": st.integers(1, 5),
            "max_num_batched_tokens": st.integers(5, 60),
            "max_prefill_tokens_beside_decodes": st.sampled_from([None, 3]),
            "max_long_partial_prefills": st.integers(1, 3),
            "max_encoder_tokens": st.sampled_from([None, 12]),
            "prefix_cache": st.just(True),
            "vision_cache_tokens": st.sampled_from([0, 20, 1000]),
            "overlap": st.booleans(),
            "host_cache_bytes": st.sampled_from([0, 3, 100]),  # in pages
            "disk_cache_folder": st.booleans(),
        }
    ),
)
def test_random_traffic(
    model: ErnieModel, prompts: dict, recomputed: dict, arrivals: list, options: dict,
    tmp_path_factory: pytest.TempPathFactory,
):  # fmt: skip
    """Whoever comes and goes when, however little memory there is: the same tokens as by recomputation."""
    options["host_cache_bytes"] *= page_bytes(model)
    options["disk_cache_folder"] = tmp_path_factory.mktemp("pages") if options["disk_cache_folder"] else None
    llm = make_llm(model, **options)
    received: list[list[int]] = [[] for _ in arrivals]
    due = [(sum(item["delay"] for item in arrivals[: index + 1]), index) for index in range(len(arrivals))]
    clock = 0
    while due or llm.has_work:
        while due and due[0][0] <= clock:
            item, index = arrivals[due[0][1]], due.pop(0)[1]
            llm.submit(
                Request(
                    request_id=str(index),
                    inputs=prompts[item["name"]],
                    params=GREEDY,
                    priority=item["priority"],
                    cache_salt=item["salt"],
                )
            )
        for event in llm.step():
            received[int(event.request_id)] += event.token_ids
        for index, item in enumerate(arrivals):
            if item["aborted_after"] is not None and len(received[index]) == item["aborted_after"]:
                llm.abort(str(index))
        llm.check_integrity()
        clock += 1
    for tokens, item in zip(received, arrivals, strict=True):
        assert tuple(tokens) == recomputed[item["name"]][: item["aborted_after"]]
    assert llm.stats().num_free_pages == llm.stats().num_pages
    llm.close()
