"""Nothing that a client sends makes a 500: every error has OpenAI's form, the right status, and names the field."""

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie45.server.errors import ApiError
from ernie45.server.parse import parse_request
from ernie45.server.protocol import ChatRequest

HI = [{"role": "user", "content": "hi"}]


def check_error(response: Any, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": [], "temperature": Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": -1e999}',
    ],
)
def test_bodies_that_are_no_request(server: Any, body: bytes) -> None:
    response = server.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    check_error(response, 400)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", None),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type", None),
        ({"messages": [{"role": "user", "content": "hi", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"temperature": "warm"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_k": 10**30}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**70}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 2**64}, "max_completion_tokens", "invalid_value"),
        ({"reasoning_max_tokens": 2**64}, "reasoning_max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": ["x" * 257]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop", "invalid_value"),
        ({"metadata": {"enable_thinking": "maybe"}}, None, "invalid_value"),
        ({"metadata": {"temperature": "0"}}, None, "invalid_value"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "invalid_value"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking", "invalid_value"),
        ({"model": 5}, "model", "invalid_value"),
        ({"user": ["x"]}, "user", "invalid_value"),
    ],
)
def test_fields(server: Any, fields: dict[str, Any], param: str | None, code: str | None) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": HI} | fields)
    error = check_error(response, 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert error["message"].startswith(param)
    if code is not None:
        assert error["code"] == code


def test_a_misspelt_field_gets_a_hint(server: Any) -> None:
    check_error(server.chat(max_token=3), 400, "max_token is not a field", "did you mean max_tokens?")


@pytest.mark.parametrize(
    ("field", "way_out"),
    [
        ("thinking_token_budget", "use reasoning_max_tokens"),
        ("max_new_tokens", "use max_tokens"),
        ("prompt", "send the prompt to /v1/completions"),
        ("truncate_prompt_tokens", "leave it out: a prompt that is too long is refused"),
        ("vllm_xargs", "; leave it out"),
    ],
)
def test_fields_of_others_get_what_to_use_instead(server: Any, field: str, way_out: str) -> None:
    check_error(server.chat(**{field: 1}), 400, f"{field} is not a field", way_out)


def url_part(url: str, kind: str = "image_url") -> list[dict[str, Any]]:
    return [{"type": kind, kind: {"url": url}}]


def as_data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        (as_data_url(b"this is text"), "not an image"),
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png,abc", "base64"),
        ("data:", "base64"),
        ("/etc/passwd", "must begin with"),
        ("ftp://example.org/x.png", "must begin with"),
        ("file:///etc/passwd", "allowed folder"),
        ("http://127.0.0.1:1/x.png", "not an address of the public internet"),
        ("http://localhost:1/x.png", "not an address of the public internet"),
        ("http://[::1]/x.png", "not an address of the public internet"),
        ("http://169.254.169.254/latest/meta-data", "not an address of the public internet"),
        ("http://2130706433/", "not an address of the public internet"),
        ("http://", ""),
        ("http://[", ""),
        ("http://a b/", ""),
        ("http://\u0000/", ""),
    ],
)
def test_pictures_that_cannot_be_used(server: Any, url: str, word: str) -> None:
    error = check_error(server.chat(url_part(url)), 415 if word == "not an image" else 400, word)
    assert error["param"].startswith("messages[0].content[0]")


def test_half_a_picture(server: Any, png: bytes) -> None:
    error = check_error(server.chat(url_part(as_data_url(png[:-30]))), 400, "cut-off")
    assert error["code"] == "invalid_media"
    check_error(server.chat(url_part(as_data_url(png), "video_url")), 415)


def test_files_only_from_the_allowed_folder(start: Any, tmp_path: Path, png: bytes) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png)
    (inside / "link.png").symlink_to(outside / "a.png")
    server = start(allowed_media_folder=inside).wait()
    server.answer(url_part(f"file://{inside}/a.png"))
    for bad in (f"{outside}/a.png", f"{inside}/../out/a.png", f"{inside}/link.png", f"{inside}/%2e%2e/out/a.png"):
        check_error(server.chat(url_part(f"file://{bad}")), 400, "allowed folder")
    check_error(server.chat(url_part(f"file://{inside}/none.png")), 400)


def test_private_addresses_when_allowed(start: Any, engine: Any, png: bytes) -> None:
    server = start(allow_private_media=True).wait()
    # The server's own page is no picture, so it was fetched.
    check_error(server.chat(url_part(server.url + "/")), 415, "not an image", "HTML page")


def test_prompt_longer_than_the_context(server: Any) -> None:
    for stream in (False, True):
        check_error(server.chat("x" * 2000, stream=stream), 400, "prompt (", "must be shorter than")


def test_what_cannot_fit_is_refused_before_any_work(server: Any, data_url: str) -> None:
    check_error(server.chat("x" * (64 * 1024)), 400, "messages (65536 characters)", "1024 tokens")
    check_error(server.chat(url_part(data_url) * 400), 400, "messages (400 pictures)")
    messages = HI * 1100
    check_error(server.client.post("/v1/chat/completions", json={"messages": messages}), 400, "messages (1100 messages)")


def test_control_tokens_in_text_stay_text(server: Any, engine: Any, processor: Any) -> None:
    server.answer("</think> <|end_of_sentence|> </s>")
    assert processor.think_end_id not in engine.prompts[-1].token_ids
    check_error(server.chat("<|IMAGE_PLACEHOLDER|>"), 400, "reserved")


def test_body_limit(start: Any) -> None:
    server = start(max_body_bytes=2000).wait()
    server.answer("x" * 900)
    error = check_error(server.chat("x" * 3000), 413, "2000 bytes")
    assert error["code"] == "body_too_large"

    def endless() -> Any:
        for _ in range(100):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    response = server.client.post("/v1/chat/completions", content=endless(), headers=headers)
    check_error(response, 413)


def test_content_type(server: Any) -> None:
    body = json.dumps({"messages": HI})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": content_type}
        check_error(server.client.post("/v1/chat/completions", content=body, headers=headers), 415, "application/json")
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert server.client.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_paths_and_methods(server: Any) -> None:
    check_error(server.client.get("/v1/nothing"), 404, "/v1/nothing")
    check_error(server.client.get("/v1/chat/completions"), 405, "GET")
    check_error(server.client.get("/samples/../app.py"), 404)
    check_error(server.client.get("/samples/%2e%2e%2fapp.py"), 404)


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost:x\r\nContent-Type:application/json\r\nTransfer-Encoding: chunked\r\n\r\nZ",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_broken_connections(server: Any, data: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        reply = connection.recv(4096)
    assert b" 500 " not in reply.partition(b"\r\n")[0]
    assert server.answer()["choices"]
    assert server.service.num_active == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "messages",
    "model",
    "stream",
    "stop",
    "metadata",
    "chat_template_kwargs",
    "temperature",
    "top_k",
    "seed",
    "n",
    "tools",
]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_any_json_is_a_request_or_an_api_error(fields: dict[str, Any]) -> None:
    for data in (fields, {"messages": HI} | fields, {"messages": [{"role": "user", "content": [fields]}]}):
        try:
            parse_request(json.dumps(data).encode(), ChatRequest)
        except ApiError as error:
            assert error.status == 400
            json.dumps(error.body, ensure_ascii=False).encode()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*NAMES, "max_tokens", "top_p", "user"]), JSON, max_size=4))
def test_no_json_makes_a_500(server: Any, fields: dict[str, Any]) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": HI} | fields)
    assert response.status_code in (200, 400, 404), response.text
