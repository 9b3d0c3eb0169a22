"""What a request gets that says nothing, and whether a prompt leaves a thought open."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.sampling import SamplingParams
from ernie45.server.job import ServedModel, Task
from ernie45.server.protocol import ChatRequest
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.thinking import thought_is_open
from ernie45.server.translate import translate


def task_of(data: Any, processor: Any, defaults: SamplingDefaults | None = None, **options: Any) -> Task:
    served = {"processor": processor, "defaults": defaults or SamplingDefaults(), "names": ("it",), "max_model_len": 200}
    return translate(ChatRequest.model_validate(data), ServedModel(**(served | options)))


def params_of(data: Any, processor: Any, defaults: SamplingDefaults | None = None) -> SamplingParams:
    return task_of(data, processor, defaults).jobs[0].params


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, SamplingDefaults(temperature=1.0, top_p=0.7, top_k=0, max_tokens=None)),
        ({}, SamplingDefaults()),
        ({"temperature": 0.2, "top_p": 0.9, "top_k": 50}, SamplingDefaults(temperature=0.2, top_p=0.9, top_k=50)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": True, "max_new_tokens": 64, "eos_token_id": 2}, SamplingDefaults(max_tokens=64)),
    ],
)
def test_defaults(tmp_path: Path, data: Any, expected: SamplingDefaults) -> None:
    if data is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(data))
    assert SamplingDefaults.from_dir(tmp_path) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": -1}', '{"top_p": "high"}', '{"max_new_tokens": 0}'])
def test_a_generation_config_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        SamplingDefaults.from_dir(tmp_path)


def test_a_request_goes_before_the_defaults(processor: Any) -> None:
    defaults = SamplingDefaults(temperature=0.0, top_p=0.5, top_k=7, max_tokens=9)
    messages = [{"role": "user", "content": "hi"}]
    silent = params_of({"messages": messages}, processor, defaults)
    assert (silent.temperature, silent.top_p, silent.top_k, silent.max_tokens) == (0.0, 0.5, 7, 9)
    fields = {"temperature": 1, "top_p": 1.0, "top_k": 0, "max_tokens": 3}
    loud = params_of({"messages": messages} | fields, processor, defaults)
    assert (loud.temperature, loud.top_p, loud.top_k, loud.max_tokens) == (1, 1.0, 0, 3)


@pytest.mark.parametrize(
    ("ids", "is_open"),
    [([1, 2], False), ([1, 7], True), ([7, 8], False), ([7, 8, 7], True), ([8, 7, 1], True), ([8], False), ([], False)],
)
def test_thought_is_open(ids: list[int], is_open: bool) -> None:
    assert thought_is_open(np.array(ids, dtype=np.int64), 7, 8) is is_open
    assert thought_is_open(np.array(ids, dtype=np.int64), None, None) is False


def test_a_model_that_cannot_think(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(processor), "think_start_id", None)
    request = {"messages": [{"role": "user", "content": "hi"}]}
    assert not task_of(request, processor).jobs[0].thinking
    with pytest.raises(RequestError, match="no thinking mode"):
        task_of(request | {"enable_thinking": True}, processor)
