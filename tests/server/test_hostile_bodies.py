"""Bodies made to cost much: each is refused in little time, and what it costs is not paid by others."""

import json
import time

import pytest

from ernie45.server.errors import ApiError
from ernie45.server.parse import parse_request
from ernie45.server.protocol import ApiRequest, ChatRequest, CompletionRequest
from ernie45.server.protocol.responses import ResponsesRequest

MANY = 400_000
HI = '"messages": [{"role": "user", "content": "hi"}]'
KEYS = ",".join(f'"k{index}": 1' for index in range(MANY))


def many(item: str) -> str:
    return "[" + ",".join([item] * MANY) + "]"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, f"{{{KEYS}}}"),
        (ChatRequest, f'{{"messages": [{{"role": "user", "content": "hi", {KEYS}}}]}}'),
        (ChatRequest, f'{{{HI}, "metadata": {{{KEYS}}}}}'),
        (ChatRequest, f'{{"messages": {many("1")}}}'),
        (ChatRequest, f'{{"messages": {many("{}")}}}'),
        (ChatRequest, f'{{"messages": [{{"role": "user", "content": {many("{}")}}}]}}'),
        (ChatRequest, f'{{"prompt_token_ids": {many("""-1""")}}}'),
        (ChatRequest, f'{{{HI}, "stop": {many("1")}}}'),
        (ChatRequest, f'{{{HI}, "bad_words_token_ids": {many("[-1]")}}}'),
        (CompletionRequest, f'{{"prompt": {many("[-1]")}}}'),
        (ResponsesRequest, f'{{"input": {many("{}")}}}'),
    ],
)
def test_only_the_first_of_a_million_faults_is_looked_for(model: type[ApiRequest], body: str) -> None:
    began = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse_request(body.encode(), model)
    assert time.process_time() - began < 1.9, "took 2 to 3 s, and minutes at the largest size that a body may have"
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("item", ["[]", "{}", "1"])
def test_a_body_of_many_small_values_is_not_even_built(item: str) -> None:
    """64 MiB of empty lists would take 2 GiB as objects."""
    body = b'{"x": [' + b",".join([item.encode()] * (9_000_000 if item == "1" else 600_000)) + b"]}"
    with pytest.raises(ApiError, match="has too many values") as caught:
        parse_request(body, ChatRequest)
    assert caught.value.status == 400


def test_a_long_value_is_shown_in_part() -> None:
    for value in (["x" * 1000] * 20, {"a": {"b": [1] * 10_000}}, "y" * 10_000):
        with pytest.raises(ApiError) as caught:
            parse_request(json.dumps({"temperature": value}).encode(), ChatRequest)
        shown = repr(value)[:80]
        assert caught.value.message.startswith(f"temperature ({shown}...)")


@pytest.mark.parametrize("name", ["bad_words", "bad_words_token_ids"])
def test_bad_words_are_short(name: str) -> None:
    """A thousand of them with a thousand characters each took minutes to encode."""
    for size, good in ((256, True), (257, False)):
        word = "x" * size if name == "bad_words" else [1] * size
        body = json.dumps({"messages": [], name: [word]}).encode()
        if good:
            parse_request(body, ChatRequest)
        else:
            with pytest.raises(ApiError, match=rf"{name}\[0\]"):
                parse_request(body, ChatRequest)
