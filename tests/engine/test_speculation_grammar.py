"""Guesses under a grammar: on the shipped model, answers that must match equal those without speculation."""

import re

import numpy as np
import pytest

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.presets import TINY_FOLDER
from ernie45.config.sampling import Grammar, SamplingParams
from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.llm import LLM
from ernie45.engine.request import Request
from ernie45.engine.speculative import StepCost
from ernie45.processor.tokenizer import Tokenizer

COLOR = "(red|blue)"


def test_answers_are_those_without(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(StepCost, "share", lambda self, num_rows: 0.0)
    tokenizer = Tokenizer.from_dir(TINY_FOLDER)
    ids = np.array(tokenizer.encode("Which colors do you see? red, blue, red, blue"), np.int64)
    prompt = ModelInput(
        token_ids=ids,
        is_vision=np.zeros(len(ids), bool),
        positions=np.repeat(np.arange(len(ids))[:, None], 3, axis=1),
        patches=np.zeros((0, 588), np.uint8),
        next_position=len(ids),
    )
    grammar = Grammar(kind="regex", text=f"{COLOR}(, {COLOR}){{9}}")
    found = {}
    for speculation in (SpeculationConfig(), SpeculationConfig(method="ngram", min_ngram=1)):
        llm = LLM.load("tiny", EngineConfig(num_pages=128, speculation=speculation))
        requests = []
        for seed in range(4):
            params = SamplingParams(max_tokens=120, temperature=1.0, seed=seed, grammar=grammar, stop_token_ids=(2,))
            requests.append(Request(request_id=str(seed), inputs=prompt, params=params))
            llm.submit(requests[-1])
        while llm.has_work:
            llm.step()
        found[speculation.method] = [request.output_token_ids for request in requests]
    assert llm.stats().num_accepted_tokens > 0
    assert found["ngram"] == found["none"]
    for answer in found["ngram"]:
        assert re.fullmatch(f"{COLOR}(, {COLOR}){{9}}", tokenizer.decode(answer))
    assert not caplog.records, "no guess may break a grammar"
