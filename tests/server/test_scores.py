"""Scores of a text by echo and log-probabilities, as evaluation harnesses ask for them, with the shipped model."""

from types import SimpleNamespace
from typing import Any

import pytest

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.processor import Processor
from ernie45.server.llm_engine import LlmEngine
from ernie45.server.sampling import SamplingDefaults


def test_scores_by_echo_are_those_of_generation_and_of_the_offline_engine(start: Any) -> None:
    folder = resolve_model("tiny")
    processor = Processor.from_dir(folder)
    llm = LLM.load(folder, EngineConfig(max_num_seqs=4, dtype="float32"))
    prompt = "What is 47+12?\nAssistant: <think>\n"
    inputs = processor.encode_text(prompt, allow_special=True)
    completion = llm.generate([inputs], SamplingParams(temperature=0, max_tokens=12, logprobs=0))[0]
    assert completion.logprobs is not None
    offline = [item.logprob for item in completion.logprobs]
    server = start(
        SimpleNamespace(load=lambda: LlmEngine(llm)), processor=processor, defaults=SamplingDefaults.from_dir(folder)
    ).wait()

    def choice(**fields: Any) -> dict[str, Any]:
        response = server.client.post("/v1/completions", json={"temperature": 0} | fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    said = choice(prompt=prompt, max_tokens=12, logprobs=0, return_token_ids=True)
    assert said["completion_token_ids"] == list(completion.token_ids)
    assert said["logprobs"]["token_logprobs"] == pytest.approx(offline, abs=1e-4)
    ids = [*inputs.token_ids.tolist(), *completion.token_ids]
    for max_tokens in (0, 1):
        scored = choice(prompt=ids, echo=True, logprobs=1, max_tokens=max_tokens)
        begin, end = len(inputs), len(ids)
        assert len(scored["logprobs"]["token_logprobs"]) == end + max_tokens
        scores = scored["logprobs"]["token_logprobs"][begin:end]
        assert scores == pytest.approx(offline, abs=1e-4)
        tops = scored["logprobs"]["top_logprobs"][begin:end]
        assert scores == [max(top.values()) for top in tops]  # each was the greedy choice
        assert scored["text"].startswith(prompt + said["text"])
