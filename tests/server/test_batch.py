"""Batches: what comes out for what goes in, errors that cost their own line, and going on after any kind of end."""

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie45.cli import main
from ernie45.config.errors import Ernie45Error, RequestError, StorageError
from ernie45.config.server import ServerConfig
from ernie45.server.batch import BatchCounts, run_batch
from ernie45.server.batch_file import BatchOutput, read_lines
from ernie45.server.engine_client import EngineClient
from ernie45.server.engine_loop import run_engine
from ernie45.server.errors import ApiError
from ernie45.server.service import Service

MAX_BYTES = 10_000


def request(custom_id: Any, content: Any = "hi", url: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    names = {"/v1/completions": "prompt", "/v1/responses": "input"}
    body = {names[url]: content} if url in names else {"messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body | fields}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(path: Path) -> dict[Any, dict[str, Any]]:
    """By custom_id; fails if one comes twice."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["custom_id"] or f"line {line['error']['line']}": line for line in lines}
    assert len(found) == len(lines)
    return found


class Thread:
    """The fake engine in a thread of this process."""

    def __init__(self, load: Callable[[], Any], connection: Any) -> None:
        import threading

        self._thread = threading.Thread(target=run_engine, args=(load, connection), daemon=True)
        self._thread.start()

    def exit_reason(self) -> str | None:
        return None if self._thread.is_alive() else "ended"

    def kill(self) -> None:
        pass


@pytest.fixture
def batch(processor: Any, new_engine: Any, tmp_path: Path) -> Callable[..., BatchCounts]:
    """Runs a batch with the fake engine."""

    def run(source: Path, destination: Path | None = None, concurrency: int = 4, change: Any = None) -> BatchCounts:
        async def inside() -> BatchCounts:
            config = ServerConfig(model="models/fake", quiet=True, max_body_bytes=MAX_BYTES)
            service = Service(config, copy.copy(processor), EngineClient(partial(Thread, new_engine.load)))
            if change is not None:
                change(service)
            return await run_batch(service, source, destination or tmp_path / "out.jsonl", concurrency)

        return asyncio.run(inside())

    return run


def test_every_line_has_its_answer(batch: Any, tmp_path: Path, data_url: str) -> None:
    picture = [{"type": "image_url", "image_url": {"url": data_url}}]
    source = write(
        tmp_path / "in.jsonl",
        request("text", enable_thinking=False),
        "",
        request("picture", picture),
        request("raw", "go on", url="/v1/completions", max_tokens=3),
        request("n", n=2),
        request("response", url="/v1/responses", reasoning={"effort": "none"}),
    )
    counts = batch(source)
    found = answers(tmp_path / "out.jsonl")
    assert {name: line["response"]["status_code"] for name, line in found.items()} == dict.fromkeys(
        ("text", "picture", "raw", "n", "response"), 200
    )
    assert all(line["error"] is None and line["id"].startswith("batch_req_") for line in found.values())
    assert found["text"]["response"]["body"]["choices"][0]["message"]["content"] == "hello"
    assert found["picture"]["response"]["body"]["usage"]["prompt_tokens_details"]["image_tokens"] == 6
    assert found["raw"]["response"]["body"]["object"] == "text_completion"
    assert len(found["n"]["response"]["body"]["choices"]) == 2
    assert (counts.num_lines, counts.num_answered, counts.num_before, counts.num_errors) == (5, 5, 0, 0)
    response = found["response"]["response"]["body"]
    assert (response["object"], response["output"][-1]["content"][0]["text"]) == ("response", "hello")
    usages = [line["response"]["body"]["usage"] for line in found.values()]
    assert counts.num_completion_tokens == sum(usage.get("completion_tokens", usage.get("output_tokens")) for usage in usages)


BAD_LINES = {
    "line 1": ("{", "line 1 is not JSON"),
    "line 2": ("[1]", "must be an object"),
    "line 3": (json.dumps({"method": "POST"}), "custom_id of line 3"),
    "line 4": (json.dumps(request(7)), "custom_id of line 4 must be a text"),
    "get": (json.dumps(request("get") | {"method": "GET"}), "method ('GET')"),
    "url": (
        json.dumps(request("url", url="/v1/embeddings")),
        "must be /v1/chat/completions or /v1/completions or /v1/responses",
    ),
    "stream": (json.dumps(request("stream", stream=True)), "not for batches"),
    "extra": (json.dumps(request("extra") | {"extra": 1}), "extra of line 8"),
    "body": (json.dumps({"custom_id": "body", "method": "POST", "url": "/v1/completions", "body": []}), "body of line 9"),
    "line 10": (json.dumps(request("long", "x" * MAX_BYTES)), "longer than 10000 bytes"),
    "no url": (json.dumps({"custom_id": "no url", "method": "POST", "body": {}}), "url (None)"),
    "line 12": ("[" * 5000, "not JSON"),
    "store": (json.dumps(request("store", url="/v1/responses", store=True)), "batches, which keep nothing"),
}


def test_lines_that_are_no_requests_cost_themselves(batch: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(line for line, _ in BAD_LINES.values()), request("good"), request("good"))
    counts = batch(source)
    found = answers(tmp_path / "out.jsonl")
    for name, (_, rule) in BAD_LINES.items():
        assert rule in found[name]["error"]["message"], name
        assert found[name]["response"] is None
    twice = next(line for line in found.values() if line["error"] and line["error"]["line"] == len(BAD_LINES) + 2)
    assert "was used before" in twice["error"]["message"]
    assert counts.num_errors == len(BAD_LINES) + 1
    before = (tmp_path / "out.jsonl").read_bytes()
    assert batch(source).num_before == counts.num_lines  # nothing is asked or written again
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_requests_that_are_refused_have_the_servers_answer(batch: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a", temperature=-1), request("b", model="other"), request("c", "x" * 3000))
    batch(source)
    found = answers(tmp_path / "out.jsonl")
    assert [found[name]["response"]["status_code"] for name in "abc"] == [400, 404, 400]
    assert found["a"]["response"]["body"]["error"]["param"] == "temperature"


def test_a_defect_costs_its_own_line(batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Service.answer

    async def broken(self: Any, endpoint: Any, body: bytes, *args: Any) -> Any:
        if b"boom" in body:
            raise ZeroDivisionError("secret")
        return await plain(self, endpoint, body, *args)

    monkeypatch.setattr(Service, "answer", broken)
    counts = batch(write(tmp_path / "in.jsonl", request("a", "boom"), request("b")))
    found = answers(tmp_path / "out.jsonl")
    assert (found["a"]["response"]["status_code"], found["b"]["response"]["status_code"]) == (500, 200)
    assert "secret" not in (tmp_path / "out.jsonl").read_text()
    assert counts.num_errors == 1


def test_what_passes_is_tried_again(batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, refusals = Service.answer, iter([503, 429])

    async def busy(self: Any, *args: Any) -> Any:
        status = next(refusals, None)
        if status:
            raise ApiError(status, "not now")
        return await plain(self, *args)

    monkeypatch.setattr(Service, "answer", busy)
    monkeypatch.setattr("ernie45.server.batch._FIRST_WAIT_S", 0.01)
    assert batch(write(tmp_path / "in.jsonl", request("a"))).num_errors == 0


def test_an_engine_that_is_gone_ends_the_run_and_leaves_the_rest(batch: Any, tmp_path: Path, new_engine: Any) -> None:
    from ernie45.server.supervisor import RestartPolicy

    source = write(tmp_path / "in.jsonl", *(request(str(index)) for index in range(6)))

    def no_restart(service: Service) -> None:
        service.engine._restarts = RestartPolicy(most=0)

    new_engine.fail_at = 2
    with pytest.raises(Ernie45Error, match="engine"):
        batch(source, concurrency=1, change=no_restart)
    assert len(answers(tmp_path / "out.jsonl")) < 6
    new_engine.reset()
    new_engine._running.clear()  # a new process would begin without
    batch(source)
    assert all(line["response"]["status_code"] == 200 for line in answers(tmp_path / "out.jsonl").values())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000))
def test_output_cut_at_any_byte_is_completed(cut: int, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(request(f"ü{index}") for index in range(5)), "no json")
    output = tmp_path / "out.jsonl"
    output.unlink(missing_ok=True)

    def fill() -> None:
        file = BatchOutput(output)
        try:
            for line in read_lines(source, MAX_BYTES):
                if not file.is_done(line):
                    file.write_error(line, line.error) if line.error else file.write(line, 200, {"text": "ä\n"})
        finally:
            file.close()

    fill()
    whole = output.read_bytes()
    output.write_bytes(whole[: cut % (len(whole) + 1)])
    kept = whole[: cut % (len(whole) + 1)].count(b"\n")
    fill()
    found = answers(output)
    assert len(found) == 6
    assert output.read_bytes().splitlines()[:kept] == whole.splitlines()[:kept]


def test_one_run_at_a_time_and_only_into_its_own_file(tmp_path: Path, batch: Any) -> None:
    output = BatchOutput(tmp_path / "out.jsonl")
    with pytest.raises(StorageError, match="being written by another run"):
        BatchOutput(tmp_path / "out.jsonl")
    output.close()
    source = write(tmp_path / "in.jsonl", request("a"))
    with pytest.raises(RequestError, match="is the input"):
        batch(source, source)
    foreign = write(tmp_path / "notes.jsonl", {"a": 1})
    with pytest.raises(StorageError, match="no answer of a batch"):
        batch(source, foreign)
    assert foreign.read_text() == '{"a": 1}\n'
    with pytest.raises(RequestError, match="cannot be read"):
        batch(tmp_path / "none.jsonl")
    with pytest.raises(StorageError, match="cannot be written"):
        batch(source, tmp_path / "no" / "folder.jsonl")


@pytest.mark.slow
def test_the_command_goes_on_after_kill_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shipped model and a real engine process."""
    questions = [request(str(index), f"What is {index}+{index}?", max_tokens=12, enable_thinking=False) for index in range(200)]
    source, output = write(tmp_path / "in.jsonl", *questions), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "ernie45.cli", "run-batch", str(source), str(output), "--model", "tiny"]
    process = subprocess.Popen([*command, "--concurrency", "1"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 120
        while not (output.exists() and output.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(10)
    kept = output.read_bytes()
    assert kept.count(b"\n") < 200
    assert main(["run-batch", str(source), str(output), "--model", "tiny"]) == 0
    found = answers(output)
    assert len(found) == 200
    assert all(line["response"]["status_code"] == 200 for line in found.values())
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert f"{200 - kept.count(chr(10).encode())} answered" in capsys.readouterr().err
    assert main(["run-batch", str(source), str(output), "--model", "tiny"]) == 0  # all is there: no model is loaded
    assert "0 answered, 200 were there before" in capsys.readouterr().err
