"""The fields of chat requests beyond the first: several answers, log-probabilities, ends, ids, templates, budgets, names."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ernie45.config.engine import EngineConfig
from ernie45.server.sampling import SamplingDefaults
from tests.server.conftest import TOKENS, logprob_of

THOUGHT = "let me see</think>It is 7."


def pieces_of(events: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [choice for event in events for choice in event["choices"] if choice["index"] == index]


def joined(pieces: list[dict[str, Any]], name: str) -> str:
    return "".join(piece["delta"].get(name) or "" for piece in pieces)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "seed": 7},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"logprobs": True, "stop": "s 7", "return_token_ids": True},
        {"max_streaming_response_tokens": 4, "logprobs": True, "return_token_ids": True},
        {"max_streaming_response_tokens": 1000},
        {"include_stop_str_in_output": True, "stop": ["is"]},
        {"stop_token_ids": [ord("7")], "include_stop_str_in_output": True},
        {"min_tokens": 18, "stop": "I"},
        {"max_tokens": 3, "logprobs": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
)
def test_a_stream_adds_up_to_the_whole(server: Any, engine: Any, fields: dict[str, Any]) -> None:
    engine.say(THOUGHT)
    whole = server.answer(**{name: value for name, value in fields.items() if name != "stream_options"})
    events = server.events(**{"stream_options": {"include_usage": True}} | fields)
    assert events[-1]["usage"] == whole["usage"]
    for expected in whole["choices"]:
        pieces = pieces_of(events, expected["index"])
        for name in ("content", "reasoning_content"):
            assert joined(pieces, name) == expected["message"][name]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [expected["finish_reason"]]
        assert pieces[-1]["stop_reason"] == expected["stop_reason"]
        if fields.get("logprobs"):
            sent = [item for piece in pieces if piece["logprobs"] for item in piece["logprobs"]["content"]]
            assert sent == expected["logprobs"]["content"]
        else:
            assert expected["logprobs"] is None
        if fields.get("return_token_ids"):
            ids = [i for piece in pieces for i in piece["delta"].get("completion_token_ids", [])]
            assert ids == expected["message"]["completion_token_ids"]
            assert len(ids) == whole["usage"]["completion_tokens"]
            assert pieces[0]["delta"]["prompt_token_ids"] == expected["message"]["prompt_token_ids"]


def test_n_answers(server: Any, engine: Any) -> None:
    answer = server.answer(n=3, seed=7)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [params.seed for params in engine.params] == [7, 8, 9]
    assert answer["usage"]["completion_tokens"] == 3 * 6
    assert answer["usage"]["prompt_tokens"] == len(engine.prompts[0])
    server.answer(n=2)
    assert [params.seed for params in engine.params[3:]] == [None, None]


def test_the_seed_of_the_server_is_for_requests_without_one(start: Any) -> None:
    server = start(seed=5).wait()
    server.answer(n=2)
    server.answer(seed=0)
    assert [params.seed for params in server.engine.params] == [5, 6, 0]


def test_logprobs(server: Any, engine: Any, processor: Any) -> None:
    engine.say("a</think>字")
    content = server.answer(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", "</think>", "\ufffd", "\ufffd", "\ufffd"]
    assert b"".join(bytes(item["bytes"]) for item in content) == "a</think>字".encode()
    assert [item["logprob"] for item in content] == [logprob_of(token_id, 0).logprob for token_id in engine.reply]
    assert [len(item["top_logprobs"]) for item in content] == [2] * 5
    assert all(item["top_logprobs"][0] == {name: item[name] for name in ("token", "logprob", "bytes")} for item in content)
    assert server.answer(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_sampling_fields(server: Any, engine: Any, processor: Any) -> None:
    encode = processor.tokenizer.encode
    fields = {"min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.5, "frequency_penalty": -0.5, "presence_penalty": 2}
    server.answer(
        **fields, logit_bias={"5": -100, "7": 1.5}, bad_words=["no", " way"], bad_words_token_ids=[9, 10], stop_token_ids=[65]
    )
    params = engine.params[-1]
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == ((5, -100.0), (7, 1.5))
    assert params.bad_words == (*(tuple(encode(text)) for text in ("no", " no", "way", " way")), (9,), (10,))
    assert params.stop_token_ids == (*processor.stop_token_ids, 65)
    server.answer(bad_words_token_ids=[[9, 10]], ignore_eos=True, stop_token_ids=[65], max_tokens=4)
    assert engine.params[-1].bad_words == ((9, 10),)
    assert engine.params[-1].stop_token_ids == (65,)


def test_ignoring_the_end(server: Any, engine: Any) -> None:
    choice = server.answer(ignore_eos=True, max_tokens=9, enable_thinking=False, skip_special_tokens=False)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello</s></s></s></s>", "length")


def test_what_ended_it(server: Any, engine: Any, processor: Any) -> None:
    last = processor.tokenizer.encode("o")[0]
    fields = {"enable_thinking": False, "stop_token_ids": [last]}
    choice = server.answer(**fields)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("hell", "stop", last)
    choice = server.answer(**fields, include_stop_str_in_output=True)["choices"][0]
    assert choice["message"]["content"] == "hello"
    choice = server.answer(enable_thinking=False, stop="ll", include_stop_str_in_output=True)["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"]) == ("hell", "ll")
    assert server.answer()["choices"][0]["stop_reason"] is None


def test_stop_strings_wait_for_min_tokens(server: Any, engine: Any) -> None:
    engine.say("stop, go, stop, go")
    content = server.answer(enable_thinking=False, stop="stop", min_tokens=6)["choices"][0]["message"]["content"]
    assert content == "stop, go, "


def test_tokens_in_one_event(server: Any, engine: Any) -> None:
    """Exactly so many, also where the engine reports many at once, or where a token completes no character."""
    for text, at_once in (("abcdefghij", False), ("abcdefghij", True), ("a字b字", True)):
        engine.say(text)
        engine.at_once = at_once
        for number in (1, 4, 10, 11, 100):
            fields = {"max_streaming_response_tokens": number, "return_token_ids": True, "logprobs": not at_once}
            pieces = pieces_of(server.events(enable_thinking=False, **fields))
            assert joined(pieces, "content") == text
            counts = [len(ids) for piece in pieces if (ids := piece["delta"].get("completion_token_ids"))]
            assert counts[:-1] == [number] * (len(counts) - 1)
            assert 0 < counts[-1] <= number
            assert sum(counts) - len(text.encode()) == (0 if at_once else 1)  # the fake's end at once has no token


def test_texts_do_not_wait_for_grammars(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many grammars that take long come at once, and however they come."""
    slow, begun = threading.Event(), threading.Semaphore(0)

    def compile_slowly(*_: Any) -> None:
        begun.release()
        assert slow.wait(30)

    monkeypatch.setattr("ernie45.processor.grammar._compile", compile_slowly)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"description": "slow"}}}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "guided_regex": f"slow{index}"})
        for index in range(4)
    ]
    bodies += [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "tools": tools}),
        ("/v1/completions", {"prompt": "hi", "guided_regex": "slow5"}),
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "json_schema", "name": "slow", "schema": {}}}}),
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        heavy = [pool.submit(server.client.post, url, json=body) for url, body in bodies]
        assert begun.acquire(timeout=30)
        try:
            for _ in range(3):
                assert server.answer(enable_thinking=False)["choices"][0]["message"]["content"] == "hello"
            assert not any(future.done() for future in heavy)
        finally:
            slow.set()
        assert [future.result().status_code for future in heavy] == [200] * len(bodies)


def test_usage_in_every_chunk(server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events(enable_thinking=False, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert (counts[0], counts[-2:]) == (0, [6, 6])
    text = ""
    for event, count in zip(events[:-2], counts, strict=False):
        text += event["choices"][0]["delta"]["content"]
        assert len(text) <= count <= len(text) + 1  # one byte is one token here, and the end may have come with the last
    assert server.chat(stream=True, stream_options=options | {"include_usage": False}).status_code == 400


def test_token_ids_in_place_of_messages(server: Any, engine: Any, processor: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = processor.encode_chat(messages).token_ids.tolist()
    for body in ({"prompt_token_ids": ids}, {"prompt_token_ids": ids, "messages": []}):
        response = server.client.post("/v1/chat/completions", json=body)
        assert response.json()["choices"][0]["message"]["reasoning_content"] == "hello"
        assert engine.prompts[-1].token_ids.tolist() == ids


def test_resuming_an_answer(server: Any, engine: Any, processor: Any) -> None:
    engine.say("ee</think>字")
    whole = server.answer(return_token_ids=True)["choices"][0]["message"]
    prompt, ids = whole["prompt_token_ids"], whole["completion_token_ids"]
    for cut in range(len(ids) - 1):
        engine.reply = ids[cut:-1]
        message = server.answer(completion_token_ids=ids[:cut])["choices"][0]["message"]
        assert engine.prompts[-1].token_ids.tolist() == prompt + ids[:cut]
        assert engine.prompts[-1].positions[-1].tolist() == [len(prompt) + cut - 1] * 3
        assert (message["reasoning_content"] or "") == "ee"[cut:]
        rest = "字".encode()[max(cut - 3, 0) :]
        assert message["content"] == ("字" if cut <= 3 else "" if not rest else message["content"])
    engine.reply = ids[-2:-1]  # the last byte of a character whose first two were there before
    assert server.answer(completion_token_ids=ids[:-2])["choices"][0]["message"]["content"] == "字"


def test_disabling_the_template(server: Any, engine: Any, processor: Any) -> None:
    text = "raw<|end_of_sentence|>text"
    assert server.answer(text, disable_chat_template=True)["choices"][0]["message"]["content"] == "hello"
    assert engine.prompts[-1].token_ids.tolist() == processor.tokenizer.encode(text, allow_special=True)


def test_a_template_of_the_request(start: Any, server: Any) -> None:
    template = "{{ messages[0].content }}{{ style }}"
    fields = {"chat_template": template, "chat_template_kwargs": {"style": "</think>!"}}
    response = server.chat(**fields)
    assert response.status_code == 400
    assert "--trust-request-chat-template" in response.json()["error"]["message"]
    trusting = start(trust_request_chat_template=True).wait()
    trusting.answer("hi", **fields)
    assert trusting.service.processor.tokenizer.decode(trusting.engine.prompts[-1].token_ids.tolist()) == "hi</think>!"
    assert trusting.service.processor.think_end_id not in trusting.engine.prompts[-1].token_ids  # it was the user's text
    for bad in ("{{", "{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{% for a in range(10**9) %}{% endfor %}"):
        assert trusting.chat(chat_template=bad).status_code == 400, bad
    assert trusting.chat(chat_template=template, chat_template_kwargs={"other": 1}).status_code == 400


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, None),
        ({"max_tokens": 100}, 80),
        ({"max_completion_tokens": 1}, 1),
        ({"max_tokens": 100, "reasoning_max_tokens": 90}, 90),
        ({"reasoning_max_tokens": 5}, 5),
        ({"metadata": {"reasoning_max_tokens": 5}}, 5),
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning_effort": "low", "max_tokens": 100}, 80),
        ({"reasoning_effort": "medium"}, 4096),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning_effort": "xhigh", "max_tokens": 10}, 8),
        ({"reasoning_effort": "low", "reasoning_max_tokens": 2000}, 2000),
    ],
)
def test_budgets_of_thought(server: Any, engine: Any, processor: Any, fields: dict[str, Any], budget: int | None) -> None:
    server.answer(**fields)
    thinking = engine.params[-1].thinking
    assert (thinking and thinking.max_tokens) == budget
    if thinking:
        assert thinking.end_token_ids == (*processor.tokenizer.encode("\n"), processor.think_end_id)
    server.answer(**{name: value for name, value in fields.items() if name != "reasoning_effort"}, enable_thinking=False)
    assert engine.params[-1].thinking is None


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_no_effort_is_no_thought(server: Any, engine: Any, effort: str) -> None:
    assert server.answer(reasoning_effort=effort)["choices"][0]["message"]["content"] == "hello"
    response = server.chat(reasoning_effort=effort, enable_thinking=True)
    assert response.status_code == 400
    assert "enable_thinking (on) and reasoning_effort (off) disagree" in response.json()["error"]["message"]


def test_fields_in_metadata(server: Any, engine: Any) -> None:
    server.answer(metadata={"temperature": 0.25, "top_p": 0.5, "enable_thinking": "false", "tag": "x", "user": "me"})
    assert (engine.params[-1].temperature, engine.params[-1].top_p) == (0.25, 0.5)
    server.answer(temperature=0.25, metadata={"temperature": 0.25})
    for metadata in ({"temperature": 0.5}, {"temperature": "warm"}, {"model": "x"}, {"messages": []}):
        response = server.chat(temperature=0.25, metadata=metadata)
        assert response.status_code == 400, metadata
    error = server.chat(metadata={"top_p": 3}).json()["error"]
    assert error["param"] == "metadata.top_p"
    assert error["message"].startswith("metadata.top_p (3)")


def test_what_goes_to_the_engine_beside_the_prompt(server: Any, engine: Any) -> None:
    answer = server.answer(priority=-3, cache_salt="tenant", request_id="abc.1")
    request = engine.requests[-1]
    assert (request.priority, request.cache_salt, request.adapter) == (-3, "tenant", None)
    assert answer["id"] == "chatcmpl-abc.1"


def test_an_adapter_by_name(start: Any) -> None:
    server = start().wait()
    server.service.config = replace(server.config, engine=EngineConfig(lora_modules=(("poet", "adapters/poet"),)))
    assert {event["model"] for event in server.events(model="poet", n=2)} == {"poet"}
    assert [request.adapter for request in server.engine.requests] == ["poet", "poet"]
    assert "'fake' or 'poet'" in server.chat(model="other").json()["error"]["message"]


def test_the_models_own_defaults(start: Any, processor: Any) -> None:
    server = start().wait()
    server.service.defaults = SamplingDefaults(temperature=0.3, top_p=0.9, repetition_penalty=1.1, max_tokens=50)
    server.answer()
    params = server.engine.params[-1]
    assert (params.temperature, params.top_p, params.repetition_penalty, params.max_tokens) == (0.3, 0.9, 1.1, 50)
    assert params.thinking is not None
    assert params.thinking.max_tokens == 40
    assert processor.tokens == TOKENS


def test_a_deadline(start: Any, until: Any) -> None:
    server = start(request_timeout_s=0.3).wait()
    server.engine.say("on and on ", ends=False)
    server.engine.step_s = 0.02
    for n in (1, 2):
        response = server.chat(n=n)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        events = server.events(n=n)
        assert events[-1]["error"]["code"] == "timeout"
        assert joined(pieces_of(events[:-1]), "reasoning_content").startswith("o")
    until(lambda: len(server.engine.aborted) == 6 and server.service.num_jobs == 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": "no"}, "bad_words"),
        ({"bad_words_token_ids": [[]]}, "bad_words_token_ids"),
        ({"bad_words_token_ids": [10**6]}, "bad_words_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "a\n"}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"prompt_token_ids": [1]}, "messages"),
        ({"messages": [], "prompt_token_ids": [5]}, "prompt_token_ids[0]"),
        ({"messages": [], "prompt_token_ids": []}, "prompt_token_ids"),
        ({"messages": [], "prompt_token_ids": [1] * 2000}, "prompt_token_ids"),
        ({"completion_token_ids": [5]}, "completion_token_ids[0]"),
        ({"disable_chat_template": True, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"disable_chat_template": True, "messages": [{"role": "user", "content": "a"}] * 2}, "messages"),
        ({"disable_chat_template": True, "enable_thinking": True}, "enable_thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"enable_thinking": "maybe"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"options": {"mode": "open"}}}, "chat_template_kwargs.options"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"max_streaming_response_tokens": 0}, "max_streaming_response_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_bad_fields(server: Any, fields: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
