"""Plain completions: prompts of four kinds, echo, log-probabilities as harnesses read them, several answers."""

import json
from typing import Any

import pytest

from tests.server.conftest import logprob_of


def complete(server: Any, status: int = 200, **fields: Any) -> dict[str, Any]:
    response = server.client.post("/v1/completions", json=fields)
    assert response.status_code == status, response.text
    return response.json()


def complete_events(server: Any, **fields: Any) -> list[dict[str, Any]]:
    response = server.client.post("/v1/completions", json=fields | {"stream": True})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_a_text_goes_to_the_model_as_it_is(server: Any, engine: Any, processor: Any) -> None:
    prompt = "User: hi<|end_of_sentence|> <think>"
    answer = complete(server, prompt=prompt)
    assert list(engine.prompts[-1].token_ids) == processor.tokenizer.encode(prompt, allow_special=True)
    assert processor.think_start_id in engine.prompts[-1].token_ids
    assert (answer["object"], texts(answer), answer["choices"][0]["finish_reason"]) == ("text_completion", ["hello"], "stop")
    assert answer["id"].startswith("cmpl-")
    assert answer["usage"]["completion_tokens"] == len("hello") + 1
    assert engine.params[-1].max_tokens == 16
    assert engine.params[-1].thinking is None


def test_there_are_no_thoughts(server: Any, engine: Any) -> None:
    engine.say("a</think>b")
    answer = complete(server, prompt="<think>")
    assert texts(answer) == ["a</think>b"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("as_ids", [False, True])
def test_several_prompts_with_several_answers(server: Any, engine: Any, processor: Any, as_ids: bool) -> None:
    prompts = ["one", "three"]
    sent = [processor.tokenizer.encode(text) for text in prompts] if as_ids else prompts
    answer = complete(server, prompt=sent, n=2, best_of=2, seed=2**63 - 1, echo=True, return_token_ids=True)
    assert texts(answer) == ["onehello", "onehello", "threehello", "threehello"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == len("onethree")
    assert answer["usage"]["completion_tokens"] == 4 * (len("hello") + 1)
    assert sorted(params.seed for params in engine.params) == [0, 0, 2**63 - 1, 2**63 - 1]
    ids = processor.tokenizer.encode("hello")
    assert [choice["completion_token_ids"] for choice in answer["choices"]] == [[*ids, processor.tokens.eos]] * 4
    assert answer["choices"][2]["prompt_token_ids"] == processor.tokenizer.encode("three")
    assert texts(complete(server, prompt=sent[0])) == ["hello"]


def test_logprobs(server: Any, engine: Any, processor: Any) -> None:
    engine.say("a字")
    logprobs = complete(server, prompt="x", logprobs=0)["choices"][0]["logprobs"]
    ids = processor.tokenizer.encode("a字")
    values = [logprob_of(token_id, 0).logprob for token_id in ids]
    assert logprobs["tokens"] == ["a", "bytes:\\xe5", "bytes:\\xad", "bytes:\\x97"]
    assert logprobs["token_logprobs"] == values
    assert logprobs["top_logprobs"] == [{name: value} for name, value in zip(logprobs["tokens"], values, strict=True)]
    assert logprobs["text_offset"] == [0, 1, 1, 1]
    assert engine.params[-1].logprobs == 0
    assert engine.params[-1].prompt_logprobs is None
    assert complete(server, prompt="x")["choices"][0]["logprobs"] is None
    assert len(complete(server, prompt="x", logprobs=3)["choices"][0]["logprobs"]["top_logprobs"][0]) == 3


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scores_of_a_prompt_as_a_harness_reads_them(server: Any, engine: Any, processor: Any, max_tokens: int) -> None:
    engine.say("")  # ends at once: the entry that the harness drops must be there all the same
    context, continuation = "The sky", " is blue"
    answer = complete(
        server, prompt=[context + continuation, "x"], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1
    )
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    ids = processor.tokenizer.encode(context + continuation)
    assert choice["text"] == context + continuation
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"][: len(ids)] == list(range(len(ids)))
    start, end = len(context), len(ids)
    assert len(logprobs["tokens"]) == end + max_tokens
    assert sum(logprobs["token_logprobs"][start:end]) == sum(logprob_of(token_id, 1).logprob for token_id in ids[start:])
    tops = zip(logprobs["token_logprobs"][start:end], logprobs["top_logprobs"][start:end], strict=True)
    assert all(token == max(top.values()) for token, top in tops)
    assert answer["usage"]["completion_tokens"] == 2 * max_tokens
    assert engine.params[-1].max_tokens == 1
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"echo": True, "n": 3},
        {"logprobs": 2, "echo": True},
        {"logprobs": 1, "max_streaming_response_tokens": 3, "return_token_ids": True},
        {"stop": "lo", "n": 2},
        {"echo": True, "max_tokens": 0, "logprobs": 0},
    ],
)
def test_a_stream_adds_up_to_the_whole(server: Any, fields: dict[str, Any]) -> None:
    fields = {"prompt": ["ab", "c"], "stream_options": {"include_usage": True}} | fields
    whole = complete(server, **{name: value for name, value in fields.items() if name != "stream_options"})
    events = complete_events(server, **fields)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    for expected in whole["choices"]:
        pieces = [choice for event in events for choice in event["choices"] if choice["index"] == expected["index"]]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [expected["finish_reason"]]
        if fields.get("return_token_ids"):
            assert [i for piece in pieces for i in piece["completion_token_ids"]] == expected["completion_token_ids"]
        if "logprobs" in fields:
            for name, values in expected["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][name]] == values


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [5]}, "prompt[0]"),
        ({"prompt": "<|IMAGE_PLACEHOLDER|>"}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**40]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "x" * (64 * 1024)}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "enable_thinking": True}, "enable_thinking"),
        ({"prompt": ["a"] * 100, "n": 6}, "n"),
    ],
)
def test_bad_fields(server: Any, fields: dict[str, Any], param: str) -> None:
    error = complete(server, 400, **fields)["error"]
    assert error["param"] == param
    assert error["message"].startswith(param)


def test_answers_count_as_requests(start: Any, until: Any) -> None:
    server = start(max_num_requests=4).wait()
    server.engine.say("on and on ", ends=False)
    server.engine.step_s = 0.02
    with server.client.stream("POST", "/v1/completions", json={"prompt": "a", "n": 3, "stream": True, "max_tokens": 500}):
        until(lambda: len(server.engine.prompts) == 3)
        response = server.client.post("/v1/completions", json={"prompt": "a", "n": 2})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    until(lambda: server.service.num_jobs == 0 and len(server.engine.aborted) == 3)


@pytest.mark.parametrize("stream", [False, True])
def test_one_prompt_that_the_engine_refuses_ends_all(server: Any, engine: Any, until: Any, stream: bool) -> None:
    engine.say("on and on ", ends=False)
    fine, long = [65] * 10, [65] * 1024
    for prompts in ([long, fine], [fine, long], [long, long]):
        error = complete(server, 400, prompt=prompts, n=2, stream=stream)["error"]
        assert "must be shorter than" in error["message"]
        until(lambda: not engine.has_work and server.service.num_jobs == 0)
