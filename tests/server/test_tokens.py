"""Text and conversations to token ids and back; the routes about the server itself."""

from dataclasses import replace
from typing import Any

import pytest

import ernie45
from ernie45.config.engine import EngineConfig

CONVERSATION = [{"role": "user", "content": "hi </think> 字"}]


def post(server: Any, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = server.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_text(server: Any, processor: Any) -> None:
    text = "a <think>字"
    ids = processor.tokenizer.encode(text, allow_special=True)
    assert processor.think_start_id in ids
    assert post(server, "/tokenize", prompt=text) == {"count": len(ids), "max_model_len": 1024, "tokens": ids}
    names = post(server, "/tokenize", prompt=text, return_token_strs=True)["token_strs"]
    assert names == ["a", " ", "<think>", "bytes:\\xe5", "bytes:\\xad", "bytes:\\x97"]
    assert post(server, "/detokenize", tokens=ids) == {"prompt": text}
    assert post(server, "/tokenize", prompt="")["count"] == 0


@pytest.mark.parametrize("fields", [{}, {"enable_thinking": False}, {"add_generation_prompt": False}])
def test_conversation(server: Any, processor: Any, fields: dict[str, Any]) -> None:
    expected = processor.encode_chat(CONVERSATION, **fields).token_ids.tolist()
    assert post(server, "/tokenize", messages=CONVERSATION, **fields)["tokens"] == expected


def test_the_tokens_of_a_conversation_are_those_it_is_answered_from(server: Any, engine: Any, data_url: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": data_url}, {"type": "text", "text": "?"}]}]
    tokens = post(server, "/tokenize", messages=messages, reasoning_effort="none")["tokens"]
    answer = post(server, "/v1/chat/completions", messages=messages, reasoning_effort="none", return_token_ids=True)
    assert answer["choices"][0]["message"]["prompt_token_ids"] == tokens == engine.prompts[-1].token_ids.tolist()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"prompt": "a", "messages": CONVERSATION}, None),
        ({"prompt": "a", "enable_thinking": True}, None),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a", "colour": 1}, "colour"),
        ({"messages": []}, None),
        ({"prompt": "x" * (64 * 8 * 1024)}, "prompt"),
    ],
)
def test_bad_tokenize(server: Any, body: dict[str, Any], param: str | None) -> None:
    error = post(server, "/tokenize", 400, **body)["error"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize("tokens", [[-1], [10**6], [10**30], ["a"], [1.5], None])
def test_bad_detokenize(server: Any, tokens: Any) -> None:
    assert post(server, "/detokenize", 400, tokens=tokens)["error"]["param"].startswith("tokens")


def test_unknown_model(server: Any) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": []}), ("/v1/completions", {"prompt": "a"})):
        assert post(server, path, 404, model="other", **body)["error"]["code"] == "model_not_found"


def test_state(server: Any) -> None:
    assert server.client.get("/version").json() == {"version": ernie45.__version__}
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}


def test_adapters_are_models(start: Any) -> None:
    server = start().wait()
    server.service.config = replace(
        server.config, engine=EngineConfig(lora_modules=(("poet", "adapters/poet"), ("org/poet", "adapters/other")))
    )
    cards = server.client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("fake", "fake", None),
        ("poet", "fake", "fake"),
        ("org/poet", "fake", "fake"),
    ]
    assert server.client.get("/v1/models/org/poet").json() == server.client.get("/v1/models/org%2Fpoet").json() == cards[2]
    assert server.client.get("/v1/models/poet").json() == cards[1]
    assert server.client.get("/v1/models/other").status_code == 404
    for name, adapter in (("poet", "poet"), ("fake", None), ("default", None)):
        answer = server.answer(model=name)
        assert answer["model"] == ("poet" if adapter else "fake")
        assert server.engine.requests[-1].adapter == adapter
