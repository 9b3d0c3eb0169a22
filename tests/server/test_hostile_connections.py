"""Connections that are there to be held: half a request, half a body, an answer that nobody reads."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ernie45.server.stalled import StallWatch

PATIENCE_S = 0.6
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def impatient(start: Any) -> Any:
    return start(client_timeout_s=PATIENCE_S).wait()


@contextlib.contextmanager
def connected(server: Any, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(10)
    host, port = server.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    with connection:
        yield connection


def ask(connection: socket.socket, **fields: Any) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields})
    connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())


def num_connections(server: Any) -> int:
    return len(server.run.server_state.connections)


@pytest.mark.parametrize("sent", ["", "GET /health HT", HEAD, "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"])
def test_a_request_that_never_comes(impatient: Any, until: Any, sent: str) -> None:
    with connected(impatient) as connection:
        began = time.monotonic()
        connection.sendall(sent.encode())
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
        assert PATIENCE_S * 0.9 < time.monotonic() - began < PATIENCE_S * 4 + 5
    until(lambda: num_connections(impatient) == 0)


def test_a_body_that_never_ends(impatient: Any) -> None:
    """A byte now and then does not help."""
    with connected(impatient) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n".encode())
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        answer = ""
        while "}}" not in answer:
            answer += connection.recv(4096).decode()
        stop.set()
        thread.join()
    assert answer.startswith("HTTP/1.1 408 ")
    assert '"code":"body_timeout"' in answer
    assert impatient.service.num_active == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_nobody_reads(impatient: Any, until: Any, stream: bool) -> None:
    engine = impatient.engine
    engine.say("x" * 100, ends=False)
    with connected(impatient, receive_buffer=4096) as connection:
        ask(connection, stream=stream, max_tokens=200_000 if stream else 5000, logprobs=True, top_logprobs=20)
        until(lambda: len(engine.prompts) == 1)
        until(lambda: num_connections(impatient) == 0, 60)
        until(lambda: impatient.service.num_active == 0 and not engine.has_work)
    assert impatient.answer(max_tokens=3)["choices"]


@pytest.mark.parametrize(
    ("sizes", "paused", "closing", "dropped"),
    [
        ([9, 9, 9], True, False, True),
        ([9, 8, 7], True, False, False),  # it reads, though slowly
        ([9, 9, 9], False, False, False),  # as much was written as was read
        ([9, 9, 9], False, True, True),
        ([0, 0, 0], False, False, False),  # it waits for us
    ],
)
def test_who_reads_slowly_is_no_one_who_never_reads(sizes: list[int], paused: bool, closing: bool, dropped: bool) -> None:
    aborted: list[bool] = []
    transport = SimpleNamespace(is_closing=lambda: closing, abort=lambda: aborted.append(True))
    cycle, flow = SimpleNamespace(response_complete=False), SimpleNamespace(write_paused=paused)
    connection = Connection(transport=transport, cycle=cycle, flow=flow)
    watch = StallWatch({connection}, 2.0)
    for now, size in enumerate(sizes):
        transport.get_write_buffer_size = lambda size=size: size
        watch._look(float(now))
    assert bool(aborted) is dropped


class Connection(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_a_client_that_waits_for_its_answer_is_served(impatient: Any) -> None:
    impatient.engine.step_s = 2 * PATIENCE_S
    for stream in (False, True):
        assert impatient.chat(max_tokens=2, stream=stream).status_code == 200


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8180", "localhost.evil.example", "127.0.0.1.nip.io", "1.2.3"])
def test_a_strangers_name_for_this_machine(server: Any, name: str) -> None:
    """As after DNS rebinding: the browser believes that the server belongs to the page."""
    headers = {"Host": name, "Origin": f"http://{name}"}
    body = {"messages": [{"role": "user", "content": "hi"}]}
    response = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")
    assert server.client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "name", ["localhost:8180", "LOCALHOST", "127.0.0.1", "[::1]:80", "192.168.1.7", "a.localhost", "gpu1", "x."]
)
def test_names_of_this_machine(server: Any, name: str) -> None:
    assert server.client.get("/v1/models", headers={"Host": name}).status_code == 200


def test_other_names_with_a_key_or_when_allowed(start: Any) -> None:
    foreign = {"Host": "llm.example"}
    assert start(allowed_hosts=("LLM.example",)).wait().client.get("/v1/models", headers=foreign).status_code == 200
    keyed = start(api_keys=("k",)).wait()
    assert keyed.client.get("/v1/models", headers={**foreign, "Authorization": "Bearer k"}).status_code == 200


def test_a_slash_too_much_is_not_redirected(server: Any) -> None:
    """The address would be made of the Host header, and http behind a proxy with TLS: keys would be sent in the open."""
    response = server.client.post("/v1/chat/completions/", json={})
    assert response.status_code == 404
    assert "location" not in response.headers
    assert len(server.client.request("A" * 5000, "/v1/models").text) < 300
