"""A machine that has run out of something: descriptors, room for its log."""

import asyncio
import contextlib
import errno
import logging
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from ernie45.server.descriptors import LoopErrors


def test_few_words_about_no_descriptors(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ernie45"), "propagate", True)
    loop, handle = asyncio.new_event_loop(), LoopErrors()
    full: dict[str, Any] = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(errno.EMFILE, "none left"),
    }
    for _ in range(1000):
        handle(loop, full)
    told = [record.message[:26] for record in caplog.records]
    assert set(told) == {"no file descriptor is left"}
    assert len(told) < 5, "one line a while, however often it happens"
    handle(loop, {"message": "a defect", "exception": ValueError("x")})
    assert "a defect" in caplog.text
    loop.close()


def run_limited(code: str, limits: str) -> subprocess.Popen[bytes]:
    command = f"{limits} exec {sys.executable} -c '{code}'"
    return subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def test_the_limit_is_raised() -> None:
    code = (
        "import resource, ernie45.server.descriptors as d; d.raise_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    process = run_limited(code, "ulimit -Sn 200; ulimit -Hn 300;")
    output, _ = process.communicate(timeout=60)
    assert output.split() == [b"300", b"300"]


def test_a_server_without_descriptors_or_room_for_its_log_goes_on() -> None:
    """Its log is a full disk, and somebody holds all the connections that it can have."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"ulimit -n 64; exec {sys.executable} -m ernie45.cli serve tiny --port {port} 2>/dev/full"
    process = subprocess.Popen(["bash", "-c", command])
    url = f"http://127.0.0.1:{port}"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    try:
        end = time.monotonic() + 120
        while not _is_ready(url):
            assert process.poll() is None, "ended as its first line could not be written"
            assert time.monotonic() < end
            time.sleep(0.2)
        with contextlib.ExitStack() as stack:
            for _ in range(90):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.5)
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    return False
