"""API keys: where they may come from, what they open, and that they are never shown."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from ernie45.config.errors import ConfigError
from ernie45.server.auth import ApiKeys, RequireKey, load_keys

KEY = "sk-Very.Secret_1"


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"  BEARER   {KEY} ", "Bearer second"])
def test_keys_that_open(header: str) -> None:
    assert ApiKeys([KEY, "second", KEY]).accept(header)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY} {KEY}",
     f"Bearer {KEY.lower()}", "Bearer \xff\u20ac", "Bearer " + "x" * 100_000],
)  # fmt: skip
def test_keys_that_do_not(header: str | None) -> None:
    assert not ApiKeys([KEY, "second"]).accept(header)


def test_without_keys_the_server_is_open() -> None:
    assert ApiKeys().accept(None)


def test_a_key_is_in_no_repr() -> None:
    keys = ApiKeys([KEY, "second"])
    assert repr(keys) == "ApiKeys(2 keys)"
    assert KEY not in str(vars(keys))


def test_all_sources_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the evaluation\nfrom-file\n\n  second-from-file  \n")
    environ = {"ERNIE45_API_KEY": "ours,ours-too", "FD_API_KEY": " theirs ", "VLLM_API_KEY": "vllm", "OTHER": "x"}
    keys = load_keys(["flag", "flag-too"], file, environ)
    assert len(keys) == 8
    for key in ("flag", "flag-too", "from-file", "second-from-file", "ours", "ours-too", "theirs", "vllm"):
        assert keys.accept(f"Bearer {key}"), key
    assert not keys.accept("Bearer # for the evaluation")
    assert len(load_keys([], None, {"ERNIE45_API_KEY": ""})) == 0


@pytest.mark.parametrize(
    ("given", "environ", "names"),
    [
        (["good", "se cret"], {}, "api_key, key 2"),
        ([""], {}, "api_key, key 1"),
        ([], {"FD_API_KEY": "secret\u00e9"}, "FD_API_KEY, key 1"),
        ([], {"ERNIE45_API_KEY": "secret,,x"}, "ERNIE45_API_KEY, key 2"),
    ],
)
def test_bad_keys_are_named_by_place_and_not_shown(given: list[str], environ: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_keys(given, None, environ)
    assert names in str(caught.value)
    assert "cret" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_keys([], tmp_path / "gone", {})
    (tmp_path / "empty").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match="at least one key"):
        load_keys([], tmp_path / "empty", {})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_keys([], tmp_path / "bytes", {})


def get(path: str, headers: list[tuple[bytes, bytes]], keys: ApiKeys) -> tuple[int, dict[bytes, bytes], bytes]:
    """What the door says to one request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
    asyncio.run(RequireKey(PlainTextResponse("inside"), keys)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/metrics", "/ready", "/openapi.json", "/no/such", "/health/"]
)
def test_the_door(path: str) -> None:
    keys = ApiKeys([KEY])
    status, headers, body = get(path, [], keys)
    assert (status, headers[b"www-authenticate"], b"is missing" in body) == (401, b"Bearer", True)
    status, _, body = get(path, [(b"authorization", b"Bearer wrong-secret")], keys)
    assert (status, b"wrong-secret" in body, b'"code":"invalid_api_key"' in body) == (401, False, True)
    assert get(path, [(b"authorization", b"Bearer " + KEY.encode())], keys)[0] == 200
    assert get(path, [], ApiKeys())[0] == 200


@pytest.mark.parametrize("path", ["/health", "/", "/dashboard"])
def test_what_is_open(path: str) -> None:
    assert get(path, [], ApiKeys([KEY]))[::2] == (200, b"inside")


def test_the_document_says_what_wants_a_key(start: Any, server: Any) -> None:
    guarded = start(api_keys=(KEY,)).wait()
    document = guarded.client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{name: []}]
    assert KEY not in str(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = operation.get("security") == []
            assert ("401" in operation["responses"]) == (not is_open), path
            if "{" not in path:
                status = guarded.client.request(method, path).status_code
                assert (status == 401) == (not is_open), path
    assert "securitySchemes" not in server.client.get("/openapi.json").json()["components"]
