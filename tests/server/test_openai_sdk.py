"""The official openai library against chat, completions and models: at once and in streams, sync and async."""

import asyncio
from typing import Any

import openai
import pytest

THOUGHT = "let me see</think>It is 7."
MESSAGES: Any = [{"role": "user", "content": "what is 3 + 4?"}]


@pytest.fixture
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: Any, engine: Any) -> None:
    engine.say(THOUGHT)
    answer = client.chat.completions.create(
        model="fake",
        messages=MESSAGES,
        n=2,
        logprobs=True,
        top_logprobs=2,
        seed=3,
        logit_bias={"5": -100},
        reasoning_effort="low",
    )
    assert [choice.message.content for choice in answer.choices] == ["It is 7."] * 2
    assert answer.choices[0].message.reasoning_content == "let me see"
    logprobs = answer.choices[1].logprobs.content
    assert "".join(item.token for item in logprobs) == THOUGHT
    assert len(logprobs[0].top_logprobs) == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2 * (len("let me see") + 1)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_stream(client: Any, engine: Any) -> None:
    engine.say(THOUGHT)
    stream = client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, logprobs=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].usage.total_tokens > 0
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == "It is 7."
    tokens = [item.token for choice in deltas if choice.logprobs for item in choice.logprobs.content]
    assert "".join(tokens) == THOUGHT


def test_stream_helper(client: Any, engine: Any) -> None:
    engine.say("7 it is")
    with client.chat.completions.stream(
        model="fake", messages=MESSAGES, n=2, extra_body={"enable_thinking": False}, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert [choice.message.content for choice in final.choices] == ["7 it is"] * 2
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.completion_tokens == 2 * (len("7 it is") + 1)


def test_async(server: Any, engine: Any) -> None:
    engine.say(THOUGHT)

    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(model="fake", messages=MESSAGES)
            stream = await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return whole.choices[0].message.content or "", text

    assert asyncio.run(ask()) == ("It is 7.", "It is 7.")


def test_completions(client: Any, engine: Any) -> None:
    answer = client.completions.create(model="fake", prompt=["ab", "c"], echo=True, logprobs=1, max_tokens=0)
    assert [choice.text for choice in answer.choices] == ["ab", "c"]
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert answer.choices[0].logprobs.token_logprobs[1] < 0
    assert answer.choices[0].logprobs.text_offset == [0, 1]
    stream = client.completions.create(model="fake", prompt="ab", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "hello"
    assert chunks[-1].usage.completion_tokens == 6


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "ernie45"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_errors_have_their_classes(client: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(openai.BadRequestError) as info:
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=-1)
    assert (info.value.param, info.value.code, info.value.type) == ("temperature", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=MESSAGES)
    monkeypatch.setattr(server.service, "num_active", server.config.max_num_requests)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="fake", messages=MESSAGES)


def test_raw_responses(client: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.reasoning_content == "hello"
    with client.chat.completions.with_streaming_response.create(model="fake", messages=MESSAGES, stream=True) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.headers["cache-control"] == "no-cache"
        assert list(raw.iter_lines())[-2:] == ["data: [DONE]", ""]
    monkeypatch.setattr(server.service, "num_active", server.config.max_num_requests)
    with pytest.raises(openai.RateLimitError) as info:
        client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES)
    assert info.value.response.headers["retry-after"] == "1"
