"""Chat completions with an engine that says what it is told: fields, parts, counts, streams."""

import base64
import io
from typing import Any

import av
import numpy as np
import openai
import pytest

THOUGHT = "\nlet me see\n</think>\n\nIt is 7."


def stream_parts(events: list[dict[str, Any]]) -> tuple[str, str]:
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    reasoning, content = ("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content"))
    return reasoning, content


def test_answer_and_thought_come_apart(server: Any, engine: Any) -> None:
    engine.say(THOUGHT)
    answer = server.answer("what is 3 + 4?")
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "It is 7.", "reasoning_content": "let me see"}
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "fake"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_usage_counts_the_end_token_and_the_thought(server: Any, engine: Any) -> None:
    engine.say(THOUGHT)
    usage = server.answer("hi")["usage"]
    thought_tokens = len("\nlet me see\n") + 1  # bytes, and the closing tag
    assert usage["completion_tokens"] == len("\nlet me see\n") + 1 + len("\n\nIt is 7.") + 1
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought_tokens}
    assert usage["prompt_tokens"] == len(engine.prompts[0])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0}


@pytest.mark.parametrize(
    ("says", "fields"),
    [
        (THOUGHT, {}),
        ("never ends", {}),
        ("cut in the mid", {"max_tokens": 5}),
        ("plain", {"enable_thinking": False}),
        ("a\n</think>", {}),
        ("thought</think>one, two, three", {"stop": ["two"]}),
        ("thought</think>one, two, th", {"stop": ["three", "xx"]}),
        ("字</think>汉字 und Größe", {}),
        ("字</think>汉字", {"max_tokens": 5}),
        ("a\n</think>\n\n<response>\nIt is 7.\n</response>\n", {}),
        ("a</think><response>\nIt is 7.\n", {"max_tokens": 20}),
    ],
)
def test_stream_and_whole_answer_are_split_alike(server: Any, engine: Any, says: str, fields: dict[str, Any]) -> None:
    engine.say(says)
    whole = server.answer(**fields)
    events = server.events(stream_options={"include_usage": True}, **fields)
    message = whole["choices"][0]["message"]
    assert stream_parts(events) == (message["reasoning_content"] or "", message["content"])
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-1]["usage"] == whole["usage"]


def test_the_wrapping_of_an_answer_is_left_out_with_tools_and_without(server: Any, engine: Any) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
    engine.say(f"a\n</think>\n\n<response>\nI look.\n</response>\n{call}")
    tools = [{"type": "function", "function": {"name": "f"}}]
    message = server.answer(tools=tools)["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["name"]) == ("I look.", "f")
    engine.say("a\n</think>\n\n<response>\nIt is 7.\n</response>\n")
    assert server.answer()["choices"][0]["message"]["content"] == "It is 7."
    assert server.answer(tools=tools)["choices"][0]["message"]["content"] == "It is 7."
    engine.say("<response>x</response>")  # not a token of this model: somebody has asked for XML
    assert server.answer(enable_thinking=False)["choices"][0]["message"]["content"] == "<response>x</response>"


def test_a_thought_that_never_ends_is_all_thought(server: Any, engine: Any) -> None:
    engine.say("hmm ", ends=False)
    choice = server.answer(max_tokens=10)["choices"][0]
    assert choice["message"]["reasoning_content"] == "hmm hmm hm"
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "length"


def test_shape_of_a_stream(server: Any, engine: Any) -> None:
    engine.say("a</think>b")
    events = server.events()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert all("usage" not in event for event in events)


def test_usage_chunk_only_when_asked_for(server: Any) -> None:
    events = server.events(stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert all(event["usage"] is None for event in events[:-1])
    assert server.chat(stream_options={"include_usage": True}).status_code == 400


@pytest.mark.parametrize("says", ["so it ends here", "so it e", "end"])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(server: Any, engine: Any, until: Any, says: str, stream: bool) -> None:
    engine.say(says, ends=False)
    fields = {"stop": "end", "enable_thinking": False, "max_tokens": 40}
    if stream:
        content = stream_parts(server.events(**fields))[1]
    else:
        content = server.answer(**fields)["choices"][0]["message"]["content"]
    assert content == (says * 6).partition("end")[0][:40]
    if "end" in says:
        until(lambda: len(engine.aborted) == 1)


def test_stop_string_in_the_thought_does_not_end_it(server: Any, engine: Any) -> None:
    engine.say("a, b</think>c, d")
    choice = server.answer(stop=[", "])["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("a, b", "c")
    assert choice["finish_reason"] == "stop"


THINKING_SWITCHES = [
    lambda on: {"enable_thinking": on},
    lambda on: {"metadata": {"enable_thinking": on}},
    lambda on: {"metadata": {"enable_thinking": str(on).lower()}},
    lambda on: {"chat_template_kwargs": {"enable_thinking": on}},
    lambda on: {"chat_template_kwargs": {"options": {"thinking_mode": "open" if on else "close"}}},
    lambda on: {"chat_template_kwargs": {"options": {"thinking_mode": str(on).lower()}}},
    lambda on: {"chat_template_kwargs": {"options": {"thinking_mode": on}}},
]


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("switch", THINKING_SWITCHES)
def test_thinking_switches(server: Any, engine: Any, processor: Any, switch: Any, on: bool) -> None:
    message = server.answer(**switch(on))["choices"][0]["message"]
    assert message["reasoning_content"] == ("hello" if on else None)
    assert message["content"] == ("" if on else "hello")
    end = list(engine.prompts[-1].token_ids).count(processor.think_end_id)
    assert end == (0 if on else 1)


def test_switches_that_agree_are_fine_and_those_that_disagree_are_not(server: Any) -> None:
    both = {"metadata": {"enable_thinking": False}, "chat_template_kwargs": {"enable_thinking": False}}
    assert server.answer(**both)["choices"][0]["message"]["content"] == "hello"
    response = server.chat(enable_thinking=True, **both)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "enable_thinking (True) and metadata.enable_thinking (False) disagree" in message


def test_sampling_fields_reach_the_engine(server: Any, engine: Any, processor: Any) -> None:
    server.answer(temperature=0.5, top_p=0.25, top_k=3, seed=11, max_completion_tokens=4)
    params = engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.5, 0.25, 3, 11, 4)
    assert params.stop_token_ids == processor.stop_token_ids
    server.answer(top_k=-1)
    params = engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 0.7, 0, None)


def test_neutral_values_of_unsupported_fields_are_fine(server: Any) -> None:
    server.answer(
        n=1, tools=None, logprobs=False, frequency_penalty=0, presence_penalty=0.0, response_format={"type": "text"}, user="me"
    )


def test_pictures_reach_the_engine_in_order(server: Any, engine: Any, data_url: str) -> None:
    parts = [
        {"type": "text", "text": "one "},
        {"type": "image_url", "image_url": {"url": data_url}},
        {"type": "text", "text": " two "},
        {"type": "image_url", "image_url": {"url": data_url, "detail": "auto"}},
    ]
    usage = server.answer(parts)["usage"]
    prompt = engine.prompts[-1]
    assert [item.kind for item in prompt.media] == ["image", "image"]
    assert usage["prompt_tokens_details"]["image_tokens"] == sum(item.length for item in prompt.media) == 12


def test_a_video_beside_a_picture(server: Any, engine: Any, data_url: str) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            pixels = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    url = "data:video/mp4;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": data_url}},
        {"type": "text", "text": "what happens?"},
    ]
    details = server.answer(parts)["usage"]["prompt_tokens_details"]
    video, image = engine.prompts[-1].media
    assert (video.kind, image.kind) == ("video", "image")
    assert (details["video_tokens"], details["image_tokens"]) == (video.length, image.length)
    assert video.length > 0


def test_history_with_thought_and_system(server: Any, engine: Any, processor: Any) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "hello", "reasoning_content": "greet"},
        {"role": "user", "content": "again"},
    ]
    response = server.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    expected = processor.encode_chat(messages).token_ids
    assert list(engine.prompts[-1].token_ids) == list(expected)


def test_model_names(server: Any) -> None:
    for name in ("fake", "models/fake", "default", None):
        server.answer(model=name)
    response = server.chat(model="gpt-4")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    models = server.client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["fake"]
    assert models["data"][0]["max_model_len"] == 1024


def test_openai_sdk(server: Any, engine: Any, data_url: str) -> None:
    engine.say(THOUGHT)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        content: Any = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": "what is it?"}]
        messages: Any = [{"role": "user", "content": content}]
        whole = client.chat.completions.create(model="fake", messages=messages)
        assert whole.choices[0].message.content == "It is 7."
        assert getattr(whole.choices[0].message, "reasoning_content") == "let me see"  # noqa: B009  unknown to its types
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        text = reasoning = ""
        for chunk in client.chat.completions.create(model="fake", messages=messages, stream=True):
            text += chunk.choices[0].delta.content or ""
            reasoning += (chunk.choices[0].delta.model_extra or {}).get("reasoning_content") or ""
        assert (reasoning, text) == ("let me see", "It is 7.")
        engine.say("plain")
        for extra in ({"metadata": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}):
            plain = client.chat.completions.create(model="fake", messages=messages, extra_body=extra)
            assert plain.choices[0].message.content == "plain"
        with pytest.raises(openai.BadRequestError, match="messages"):
            client.chat.completions.create(model="fake", messages=[])
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=messages)
        assert [model.id for model in client.models.list()] == ["fake"]
