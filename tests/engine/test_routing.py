"""What an engine tells trainers of its answers, log-probabilities and experts, against one forward over the whole
sequence."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.llm import LLM
from ernie45.engine.request import Completion
from ernie45.model.batch import pack
from ernie45.model.moe import experts_by_token
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.logprobs import linear_logprobs
from tests.engine.conftest import answers, extended, make_llm

PARAMS = SamplingParams(max_tokens=10, temperature=0.7, logprobs=0, scaled_logprobs=True)
WAYS = {
    "alone, whole": {"max_num_seqs": 1, "prefix_cache": False},
    "in company, prefix hits": {},
    "chunked prefill": {"max_num_batched_tokens": 8, "max_num_seqs": 4},
    "preempted": {"num_pages": 16, "max_num_seqs": 6},
    "guessed ahead": {"speculation": SpeculationConfig(method="ngram")},
    "planned ahead": {"overlap": True},
}


def rollouts(llm: LLM, inputs: Sequence[ModelInput], params: SamplingParams = PARAMS) -> list[Completion]:
    return llm.generate(inputs, [replace(params, seed=seed, stop_token_ids=(7, 11)) for seed in range(len(inputs))])


@torch.no_grad()
def check(model: ErnieModel, inputs: ModelInput, completion: Completion, temperature: float) -> None:
    answer = list(completion.token_ids)
    told = [entry.logprob for entry in completion.logprobs or ()]
    if completion.stop_token_id is not None:
        assert completion.stop_logprob is not None
        answer.append(completion.stop_token_id)
        told.append(completion.stop_logprob.logprob)
    batch = pack([extended(inputs, answer[:-1])])
    out = model(batch)
    expected = linear_logprobs(out.hidden_TD[-len(answer) :], model.head_weight, torch.tensor(answer), temperature).logprobs_R
    assert np.abs(np.array(told) - expected.numpy()).max() < 1e-5
    assert completion.experts is not None
    assert completion.experts.dtype == np.int16
    # Which of two chosen experts is named first has no effect.
    assert np.array_equal(np.sort(completion.experts, -1), np.sort(experts_by_token(out.routers, batch).numpy(), -1))


@pytest.mark.parametrize("way", WAYS)
def test_engine_and_trainer_agree_token_by_token(model: ErnieModel, prompts: dict[str, ModelInput], way: str):
    llm = make_llm(model, records_routing=True, **WAYS[way])
    inputs = [prompts[name] for name in ("text", "image", "mixed", "mixed", "mixed", "text")]
    completions = rollouts(llm, inputs)
    for item, completion in zip(inputs, completions, strict=True):
        check(model, item, completion, PARAMS.temperature)
    stats = llm.stats()
    assert bool(stats.num_hit_tokens) == (way != "alone, whole")
    assert bool(stats.num_preemptions) == (way == "preempted")
    assert any(completion.stop_token_id is not None for completion in completions), "no answer tells of its stop token"
    llm.close()


def test_changed_weights_are_used_at_once_and_nothing_old_is(model: ErnieModel, prompts: dict[str, ModelInput]):
    own = ErnieModel(model.config)
    own.load_state_dict(model.state_dict())
    llm = make_llm(own, records_routing=True)
    inputs = [prompts["mixed"], prompts["image"]]
    before = rollouts(llm, inputs)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.1)
    llm.weights_changed()
    llm.check_integrity()
    after = rollouts(llm, inputs)
    assert answers(before) != answers(after)
    for item, completion in zip(inputs, after, strict=True):
        check(own, item, completion, PARAMS.temperature)


def test_what_is_not_asked_for_is_not_told(model: ErnieModel, prompts: dict[str, ModelInput]):
    (completion,) = make_llm(model).generate([prompts["text"]], SamplingParams(max_tokens=2, temperature=0))
    assert completion.experts is None
    assert completion.stop_logprob is None


def test_what_cannot_be_told_is_refused(model: ErnieModel, tmp_path):
    with pytest.raises(ConfigError, match="records_routing"):
        EngineConfig(records_routing=True, host_cache_bytes=1 << 20)
    with pytest.raises(RequestError, match="scaled_logprobs"):
        SamplingParams(temperature=0, scaled_logprobs=True)
    llm = make_llm(model, disk_cache_folder=tmp_path)
    with pytest.raises(ConfigError, match="disk_cache_folder"):
        llm.weights_changed()
    llm.close()
