"""The whole engine on a tiny random model: greedy answers equal those of full recomputation, however they are scheduled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ernie45.checkpoint import save_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, RequestError
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.engine.request import Request
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from tests.engine.conftest import GREEDY, IMAGE, NUM_NEW, PROMPTS, VIDEO, MakeInput, answers, extended, make_llm, recompute


def test_the_random_model_tells_prompts_apart(recomputed: dict[str, tuple[int, ...]]):
    """Otherwise the tests below would show nothing."""
    assert len(set(recomputed.values())) == len(recomputed)
    assert all(len(set(answer)) > 3 for answer in recomputed.values())


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 5, "max_num_seqs": 1}, {"prefix_cache": False, "vision_cache_tokens": 0, "page_size": 16}],
    ids=["whole", "chunked", "plain"],
)
def test_alone(model: ErnieModel, prompts: dict, recomputed: dict, name: str, options: dict):
    llm = make_llm(model, **options)
    events = list(llm.stream(prompts[name], GREEDY))
    assert tuple(token for event in events for token in event.token_ids) == recomputed[name]
    assert [event.finish_reason for event in events] == [None] * (NUM_NEW - 1) + ["length"]
    llm.check_integrity()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7, "max_num_seqs": 3},
        {"num_pages": 20, "prefix_cache": False},
        {"num_pages": 20, "max_num_batched_tokens": 9, "max_num_seqs": 4, "max_long_partial_prefills": 4},
    ],
    ids=["together", "chunked", "preempted", "preempted and cached"],
)
def test_batched(model: ErnieModel, prompts: dict, recomputed: dict, options: dict):
    llm = make_llm(model, **options)
    assert answers(llm.generate(list(prompts.values()), GREEDY)) == list(recomputed.values())
    assert (llm.stats().num_preemptions > 0) == ("num_pages" in options)
    llm.check_integrity()
    assert llm.stats().num_free_pages == llm.stats().num_pages


def test_prefix_hits(model: ErnieModel, prompts: dict, recomputed: dict):
    """A second time all comes from the cache but the last tokens; a second turn finds prompt and answer."""
    llm = make_llm(model)
    llm.generate(list(prompts.values()), GREEDY)
    again = llm.generate(list(prompts.values()), GREEDY)
    assert answers(again) == list(recomputed.values())
    assert [item.num_cached_tokens for item in again] == [(len(item) - 1) // 4 * 4 for item in prompts.values()]
    second = extended(prompts["mixed"], [*recomputed["mixed"], 5, 6, 7])
    (turn,) = llm.generate([second], GREEDY)
    assert turn.token_ids == recompute(model, second)
    assert turn.num_cached_tokens >= len(prompts["mixed"])


def test_a_hit_that_ends_inside_a_picture(model: ErnieModel, make_input: MakeInput):
    """Same picture, another question: the chunk begins in the picture, whose features are in memory or encoded again."""
    first, second = make_input([5, IMAGE, 5], seed=3), make_input([5, IMAGE, 3], seed=3)
    ids = second.token_ids.copy()
    ids[19:] = 9
    second = replace(second, token_ids=ids)
    for vision_cache_tokens, num_encoded in ((100, 1), (0, 2)):
        llm = make_llm(model, vision_cache_tokens=vision_cache_tokens)
        llm.generate([first], GREEDY)
        (answer,) = llm.generate([second], GREEDY)
        assert answer.num_cached_tokens == 16  # the picture is at 6 to 17
        assert answer.token_ids == recompute(model, second)
        assert llm._runner.features.num_encoded_units == num_encoded


def test_each_picture_is_encoded_once(model: ErnieModel, make_input: MakeInput):
    llm = make_llm(model, max_num_batched_tokens=8, max_num_seqs=4, prefix_cache=False)
    llm.generate([make_input([3, IMAGE, 4, VIDEO], seed=seed) for seed in range(3)], GREEDY)
    assert llm._runner.features.num_encoded_units == 4


def test_the_memory_of_pictures_is_bounded(model: ErnieModel, make_input: MakeInput):
    llm = make_llm(model, vision_cache_tokens=30, prefix_cache=False)
    for seed in range(6):
        llm.generate([make_input([("image", (1, 6, 8), seed)])], SamplingParams(max_tokens=1))
    assert llm._runner.features._num_kept_tokens == sum(map(len, llm._runner.features._kept.values())) == 24


@torch.no_grad()
def test_chunked_logits_are_close(model: ErnieModel, prompts: dict):
    """The logits behind the greedy choice, chunk by chunk, against the whole sequence at once."""
    inputs = prompts["mixed"]
    expected_V = model.logits(model(pack([inputs])).hidden_TD[-1:])[0]
    llm = make_llm(model, max_num_batched_tokens=6, max_num_seqs=2)
    llm.submit(Request(request_id="a", inputs=inputs, params=GREEDY))
    while not (chunks := llm._scheduler.schedule())[0].samples:
        llm._scheduler.update(chunks, llm._runner.run(chunks))
    torch.testing.assert_close(llm._runner.logits(chunks)[0], expected_V, atol=1e-4, rtol=1e-4)


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(model: ErnieModel, prompts: dict):
    params = [
        SamplingParams(max_tokens=NUM_NEW, temperature=1.3, top_p=0.9, top_k=top_k, seed=seed)
        for seed, top_k in enumerate((0, 5, 0, 50, 0, 3))
    ]
    alone = [
        answers(make_llm(model).generate([inputs], item))[0] for inputs, item in zip(prompts.values(), params, strict=True)
    ]
    llm = make_llm(model, num_pages=20, max_num_batched_tokens=9, max_num_seqs=4, max_long_partial_prefills=4)
    assert answers(llm.generate(list(prompts.values()), params)) == alone
    assert llm.stats().num_preemptions > 0
    other = [replace(item, seed=99) for item in params]
    assert answers(make_llm(model).generate(list(prompts.values()), other)) != alone


def test_without_a_seed_answers_differ(model: ErnieModel, prompts: dict):
    hot = SamplingParams(max_tokens=NUM_NEW, temperature=2.0)
    assert len(set(answers(make_llm(model).generate([prompts["text"]] * 4, hot)))) > 1


def test_a_loaded_folder_answers_alike(model: ErnieModel, prompts: dict, recomputed: dict, tmp_path: Path):
    save_model(model, tmp_path)
    llm = LLM.load(tmp_path, EngineConfig(num_pages=64))
    assert answers(llm.generate([prompts["mixed"]], GREEDY)) == [recomputed["mixed"]]
    small = LLM.load(tmp_path, EngineConfig(num_pages=64, dtype="bfloat16"))
    assert small.model.dtype == torch.bfloat16
    assert len(small.generate([prompts["mixed"]], GREEDY)[0].token_ids) == NUM_NEW


def test_stop_tokens(model: ErnieModel, prompts: dict, recomputed: dict):
    answer = recomputed["text"]
    stop = answer[4]
    end = answer.index(stop)
    (completion,) = make_llm(model).generate([prompts["text"]], replace(GREEDY, stop_token_ids=(stop,)))
    assert (completion.token_ids, completion.finish_reason, completion.stop_token_id) == (answer[:end], "stop", stop)


def test_interleaved_streams_and_an_early_end(model: ErnieModel, prompts: dict, recomputed: dict):
    llm = make_llm(model, prefix_cache=False)
    first, second = llm.stream(prompts["text"], GREEDY), llm.stream(prompts["image"], GREEDY)
    taken = [next(first).token_ids[0] for _ in range(3)]
    assert tuple(taken) == recomputed["text"][:3]
    start = next(second).token_ids
    assert llm.stats().num_running == 2
    first.close()
    assert llm.stats().num_running == 1
    assert start + tuple(event.token_ids[0] for event in second) == recomputed["image"]
    assert not llm.has_work
    assert llm.stats().num_free_pages == llm.stats().num_pages


def test_submit_step_abort(model: ErnieModel, prompts: dict, recomputed: dict):
    llm = make_llm(model, prefix_cache=False)
    received: dict[str, list[int]] = {name: [] for name in prompts}
    for name, inputs in prompts.items():
        llm.submit(Request(request_id=name, inputs=inputs, params=GREEDY))
    for index in range(NUM_NEW):
        if index == 3:
            assert llm.abort("video")
            assert not llm.abort("video")
        for event in llm.step():
            received[event.request_id] += event.token_ids
        llm.check_integrity()
    assert not llm.has_work
    assert llm.step() == []
    assert {name: tuple(tokens) for name, tokens in received.items()} == {
        **recomputed,
        "video": recomputed["video"][:3],
    }
    assert llm.stats().num_free_pages == llm.stats().num_pages


def test_what_the_model_cannot_take_is_refused_and_leaves_nothing_behind(model: ErnieModel, make_input: MakeInput):
    llm = make_llm(model, max_model_len=20)
    with pytest.raises(RequestError, match=r"prompt \(20 tokens\) must be shorter than the context of 20 tokens"):
        llm.generate([make_input([3]), make_input([20])], GREEDY)
    assert not llm.has_work
    wrong = replace(make_input([3]), token_ids=np.array([3, 96, 3]))
    with pytest.raises(RequestError, match=r"token ids \(3 to 96\) must be from 0 to 95"):
        next(llm.stream(wrong))
    with pytest.raises(RequestError, match="params"):
        llm.generate([make_input([3])], [GREEDY, GREEDY])
    with pytest.raises(ConfigError, match=r"max_model_len \(513\) must be at most .* \(512\)"):
        make_llm(model, max_model_len=513)


def test_a_text_model_refuses_pictures(config: ModelConfig, make_input: MakeInput):
    text_only = replace(config, vision=None, expert_pools=config.expert_pools[:1])
    llm = make_llm(ErnieModel(text_only))
    with pytest.raises(RequestError, match="pictures"):
        next(llm.stream(make_input([IMAGE])))
    assert len(llm.generate([make_input([4])], GREEDY)[0].token_ids) == NUM_NEW
