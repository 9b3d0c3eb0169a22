"""Starting, loading, many clients, clients that leave, an engine that breaks, stopping."""

import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.server import ServerConfig
from ernie45.processor.fetch import FetchLimits
from ernie45.server.protocol import ChatRequest
from ernie45.server.run import bind, serve


def test_states(start: Any, new_engine: Any) -> None:
    new_engine.loaded.clear()
    server = start(new_engine).wait("loading")
    assert server.client.get("/health").status_code == 200
    assert (server.client.get("/ready").status_code, server.client.get("/ready").json()) == (503, {"status": "loading"})
    response = server.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "loading"
    assert response.headers["retry-after"] == "1"
    new_engine.loaded.set()
    server.wait("ready")
    assert server.client.get("/ready").status_code == 200
    server.answer()
    assert server.stop() == 0


def test_port_in_use() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port \({port}\) is in use"):
            serve(ServerConfig(model="tiny", port=port))


def test_bad_host() -> None:
    with pytest.raises(ConfigError, match="no address of this machine|cannot be bound"):
        bind("203.0.113.7", 0)
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("no.such.host.invalid", 0)


def test_bad_model(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="config.json"):
        serve(ServerConfig(model=str(tmp_path), port=0, quiet=True))


def test_loading_that_fails_ends_the_server(start: Any, new_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_engine, "load", _refuse_to_load)
    server = start(new_engine)
    server._thread.join(10)
    assert server.exit_code == "Ernie45Error: weights (x) are damaged; fetch them again"


def _refuse_to_load() -> Any:
    raise CheckpointError("weights (x) are damaged; fetch them again")


def test_many_at_once(server: Any, engine: Any, data_url: str, until: Any) -> None:
    engine.say("thought</think>answer")
    picture = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": "?"}]

    def ask(index: int) -> str:
        if index % 3 == 0:
            deltas = [choice["delta"] for event in server.events(picture) for choice in event["choices"]]
            return "".join(delta.get("content", "") for delta in deltas)
        return server.answer(picture if index % 3 == 1 else "hi")["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == ["answer"] * 50
    # A client may have its last event before the server has put the request away.
    until(lambda: (server.service.num_active, server.service.engine.num_requests) == (0, 0))


def test_too_many(start: Any, until: Any) -> None:
    server = start(max_num_requests=2).wait()
    engine = server.engine
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(server.answer, max_tokens=60) for _ in range(2)]
        until(lambda: len(engine.prompts) == 2)
        response = server.chat()
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert all(future.result()["choices"] for future in running)
    server.answer(max_tokens=3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_request(server: Any, engine: Any, until: Any, stream: bool) -> None:
    engine.say("on and on ", ends=False)
    engine.step_s = 0.005
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=5) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        if stream:
            assert connection.recv(100)
        until(lambda: len(engine.prompts) == 1)
    until(lambda: len(engine.aborted) == 1)
    until(lambda: server.service.num_active == 0)
    assert not engine.has_work


def test_a_slow_reader_slows_nobody(server: Any, engine: Any) -> None:
    engine.say("x" * 200, ends=False)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 20000}).encode()
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=5) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        for _ in range(5):
            server.answer(max_tokens=50)
        assert server.service.num_active == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_breaks(start: Any, stream: bool) -> None:
    server = start().wait()
    server.engine.fail_at = 2
    response = server.chat(stream=stream)
    if stream:
        assert '"error":{"message":"the engine is not running' in response.text
    else:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_dead"
    server._thread.join(10)
    assert server.stop() == 1


def test_stop_waits_for_running_answers_but_not_for_ever(start: Any, until: Any) -> None:
    server = start().wait()
    engine = server.engine
    engine.say("word ", ends=False)
    engine.step_s = 0.01
    with ThreadPoolExecutor(2) as pool:
        short = pool.submit(server.events, max_tokens=40)
        endless = pool.submit(server.events)
        until(lambda: len(engine.prompts) == 2)
        began = time.monotonic()
        server.run.should_exit = True
        assert short.result()[-1]["choices"][0]["finish_reason"] == "length"
        assert endless.result()[-1]["error"]["message"].startswith("the engine is not running: the server is stopping")
        assert 0.9 < time.monotonic() - began < 5
    assert server.stop() == 0
    assert threading.active_count() < 20


class PictureHost:
    """An http server for one picture, or one that takes a connection and then says nothing."""

    def __init__(self, png: bytes | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/picture"
        self._png = png
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            if self._png is not None:
                connection.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(self._png)}\r\n\r\n"
                connection.sendall(head.encode() + self._png)

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        for connection in (*self._connections, self._listener):
            connection.close()


def picture_at(url: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}]


def test_picture_by_http(start: Any, png: bytes) -> None:
    host = PictureHost(png)
    server = start(allow_private_media=True).wait()
    try:
        usage = server.answer(picture_at(host.url))["usage"]
    finally:
        host.close()
    assert usage["prompt_tokens_details"]["image_tokens"] == 6


def test_a_picture_host_that_never_answers_holds_up_no_one_else(start: Any, until: Any, data_url: str, png: bytes) -> None:
    host, other = PictureHost(None), PictureHost(png)
    server = start(allow_private_media=True).wait()
    bound = FetchLimits().max_connections_per_host
    num_pictures = bound + 4
    with ThreadPoolExecutor(num_pictures) as pool:
        try:
            waiting = [pool.submit(server.chat, picture_at(host.url)) for _ in range(num_pictures)]
            until(lambda: host.num_connections == bound)
            server.answer("text alone")
            server.answer(picture_at(data_url))
            server.answer(picture_at(other.url.replace("127.0.0.1", "localhost")))
            assert not any(future.done() for future in waiting)
            assert host.num_connections == bound
        finally:
            host.close()
            other.close()
        assert {future.result().status_code for future in waiting} == {400}


@pytest.mark.parametrize("stream", [False, True])
def test_a_defect_is_logged_and_not_shown(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("ernie45.server.translate.chat_prompt", broken)
    monkeypatch.setattr(logging.getLogger("ernie45"), "propagate", True)
    response = server.chat(stream=stream)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    server.answer()
    assert server.service.num_active == 0


def test_openapi_lists_every_field(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(ChatRequest.model_fields)
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]
