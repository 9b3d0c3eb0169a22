"""The access log: what it says of a request, and that keys, prompts and pictures are not in it, whatever goes wrong."""

import io
import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest

from ernie45.server.access_log import request_id
from ernie45.server.log_format import JsonFormatter, TextFormatter, log_config

SECRET = "xyzzy-secret"
KEY = "sk-xyzzy-secret-key"


class Log:
    """Everything that the server's loggers write, as its formatters write it."""

    def __init__(self, as_json: bool) -> None:
        config = log_config(quiet=False, as_json=as_json)
        config["handlers"]["stderr"] = {"()": lambda formatter=None: self.handler, "formatter": "line"}
        self.handler = logging.StreamHandler(io.StringIO())
        self._config = config

    def open(self) -> "Log":
        logging.config.dictConfig(self._config)
        return self

    @property
    def text(self) -> str:
        return self.handler.stream.getvalue()

    def lines(self, route: str) -> list[str]:
        return [line for line in self.text.splitlines() if route in line]


LOGGERS = ("ernie45", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def restored() -> Iterator[None]:
    """Loggers as they were, afterwards."""
    before = {name: (logger := logging.getLogger(name), logger.handlers[:], logger.level, logger.propagate) for name in LOGGERS}
    yield
    for logger, handlers, level, propagate in before.values():
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(params=[False, True], ids=["text", "json"])
def log(request: Any, server: Any, restored: None) -> Log:
    return Log(request.param).open()


def test_a_line_for_a_request(log: Log, server: Any, engine: Any, until: Any) -> None:
    engine.say("abc")
    usage = server.answer(enable_thinking=False, n=2)["usage"]
    until(lambda: log.lines("/v1/chat/completions"))
    [line] = log.lines("/v1/chat/completions")
    if line.startswith("{"):
        fields = json.loads(line)
        assert (fields["method"], fields["status"], fields["client"], fields["level"]) == ("POST", 200, "127.0.0.1", "INFO")
        assert (fields["prompt_tokens"], fields["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert fields["finish"] == "stop,stop"
        assert 0 < fields["ttft_s"] <= fields["duration_s"] < 10
    else:
        assert "POST /v1/chat/completions 200 0." in line
        assert f"prompt_tokens={usage['prompt_tokens']} " in line
        assert f"completion_tokens={usage['completion_tokens']} " in line


def test_ids_go_in_and_out(log: Log, server: Any, until: Any) -> None:
    response = server.client.get("/v1/models", headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    made = server.client.get("/v1/models").headers["x-request-id"]
    assert len(made) == 32
    assert server.client.get("/no/such").headers["x-request-id"]
    until(lambda: len(log.lines("unmatched")) == 1)
    assert "mine-1" in log.lines("/v1/models")[0]
    assert made in log.lines("/v1/models")[1]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a.B_c:d-1", "a.B_c:d-1"), ("a\r\nINFO forged", "aINFOforged"), ("x" * 500, "x" * 128), ("\x1b[31m\u20ac", "31m")],
)
def test_ids_forge_nothing(given: str, kept: str) -> None:
    assert request_id(given) == kept


def test_an_id_of_nothing_is_a_new_one() -> None:
    assert len({request_id(given) for given in (None, "", "\n", None)}) == 4


def test_probes_are_not_logged_unless_they_are_refused(
    log: Log, server: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    for path in ("/health", "/ready", "/metrics", "/load"):
        assert server.client.get(path).status_code == 200
    monkeypatch.setattr(server.service, "draining", True)
    assert server.client.get("/ready").status_code == 503
    assert server.client.post("/metrics").status_code == 405
    until(lambda: log.lines("/metrics"))
    assert len(log.text.splitlines()) == 1


def test_a_client_that_leaves_is_a_499(log: Log, server: Any, engine: Any, until: Any) -> None:
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_raw())
    until(lambda: log.lines("/v1/chat/completions"))
    [line] = log.lines("/v1/chat/completions")
    assert ("499" in line, "abort" in line) == (True, True)


def bad_requests(data_url: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Requests with a secret in every place that there is."""
    secret_url = f"http://{SECRET}.invalid/{SECRET}?{SECRET}"
    chat = "/v1/chat/completions"
    headers = {"Authorization": f"Bearer {KEY}", "Cookie": SECRET, "User-Agent": SECRET, "Referer": secret_url}
    message = {"role": "user", "content": SECRET}
    for fields in (
        {},
        {"stream": True},
        {"temperature": SECRET},
        {SECRET: SECRET},
        {"model": SECRET},
        {"user": SECRET, "metadata": {SECRET: SECRET}},
        {"stop": [SECRET]},
        {"tools": [{"type": "function", "function": {"name": SECRET, "parameters": {SECRET: 1}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": {"type": SECRET}}}},
        {"guided_regex": f"({SECRET}"},
        {"chat_template": "{{ " + SECRET + " "},
    ):
        yield "POST", chat, {"json": {"messages": [message], **fields}, "headers": headers}
    for url in (secret_url, f"file:///{SECRET}", f"data:image/png;base64,{SECRET}", data_url + SECRET):
        part = {"type": "image_url", "image_url": {"url": url}}
        yield "POST", chat, {"json": {"messages": [{"role": "user", "content": [part]}]}, "headers": headers}
    yield (
        "POST",
        chat,
        {"content": f'{{"messages": "{SECRET}'.encode(), "headers": headers | {"Content-Type": "application/json"}},
    )
    yield "POST", chat, {"content": SECRET.encode(), "headers": headers | {"Content-Type": f"text/{SECRET}"}}
    yield "POST", "/v1/completions", {"json": {"prompt": SECRET, "suffix": SECRET}, "headers": headers}
    yield "POST", "/v1/completions", {"json": {"prompt": SECRET}, "headers": headers}
    yield "POST", "/tokenize", {"json": {"prompt": SECRET}, "headers": headers}
    for path in (f"/{SECRET}", f"/samples/{SECRET}", f"/v1/models?key={SECRET}", f"/metrics?{SECRET}"):
        yield "GET", path, {"headers": headers}
        yield "DELETE", path, {"headers": headers}


def test_no_secret_reaches_the_log(log: Log, server: Any, engine: Any, data_url: str, until: Any) -> None:
    engine.say(SECRET)
    requests = list(bad_requests(data_url))
    statuses = [server.client.request(method, path, **rest).status_code for method, path, rest in requests]
    assert {200, 400, 404, 405, 415} <= set(statuses)
    assert 500 not in statuses
    # Each but the probes that went well.
    told = zip(requests, statuses, strict=True)
    num_lines = sum(not (path.startswith("/metrics") and status == 200) for (_, path, _), status in told)
    until(lambda: len(log.text.splitlines()) == num_lines)
    assert "xyzzy" not in log.text
    assert "base64" not in log.text


@pytest.mark.parametrize("stream", [False, True])
def test_no_secret_of_a_defect_reaches_the_log(
    log: Log, server: Any, engine: Any, monkeypatch: pytest.MonkeyPatch, stream: bool, until: Any
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ZeroDivisionError(f"{SECRET} in {KEY}") from error

    monkeypatch.setattr(server.service, "_begin", broken)
    response = server.chat(SECRET, stream=stream)
    assert (response.status_code, "xyzzy" in response.text) == (500, False)
    until(lambda: log.lines("/v1/chat/completions"))
    assert "ZeroDivisionError" in log.text
    assert "KeyError" in log.text
    assert "in broken" in log.text
    assert "xyzzy" not in log.text


def test_no_secret_of_a_broken_engine_reaches_anybody(start: Any, restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start().wait()
    log = Log(False).open()

    def broken() -> Any:
        raise ValueError(SECRET)

    monkeypatch.setattr(server.engine, "step", broken)
    response = server.chat()
    assert (response.status_code, "ValueError" in response.text) == (503, True)
    assert "ValueError" in log.text
    assert "xyzzy" not in response.text + log.text


def test_details_where_they_are_asked_for() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        record = logging.LogRecord("ernie45", logging.ERROR, __file__, 1, "it broke", (), (type(error), error, None))
    for formatter in (TextFormatter, JsonFormatter):
        assert SECRET not in formatter().format(record)
        assert SECRET in formatter(details=True).format(record)
        assert SECRET not in formatter().format(record)


def test_keys_guard_a_whole_server(start: Any, restored: None, until: Any) -> None:
    server = start(api_keys=(KEY, "other")).wait()
    log = Log(False).open()
    for path in ("/v1/models", "/metrics", "/ready", "/load", "/version", "/openapi.json", "/samples", "/no/such"):
        response = server.client.get(path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), path
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert server.chat().status_code == 401
    for path in ("/health", "/", "/dashboard"):
        assert server.client.get(path).status_code == 200, path
    server.client.headers["Authorization"] = f"Bearer {KEY}"
    server.answer()
    assert 'status="401"' in server.client.get("/metrics").text
    until(lambda: len(log.lines("/v1/chat/completions")) == 2)
    assert [" 401 " in line for line in log.lines("/v1/chat/completions")] == [True, False]
    assert KEY not in log.text
