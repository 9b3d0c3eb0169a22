"""An engine's process that is killed, breaks, hangs, cannot load or is told to stop; and a server that dies before it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.server.engine_client import EngineClient, EngineDeadError
from ernie45.server.messages import Tokens
from ernie45.server.supervisor import EngineOrder, EngineProcess, RestartPolicy, describe_exit
from ernie45.server.wire_socket import Connection

FAKE = Path(__file__).with_name("fake_engine_process.py")
KILLED, HUNG, FAILED, LEFT = 101, 102, 103, 104
QUICK = RestartPolicy(most=3, first_delay_s=0.05)


def prompt(first: int = 65) -> ModelInput:
    return ModelInput(
        token_ids=np.array([first, 66]),
        is_vision=np.zeros(2, bool),
        positions=np.zeros((2, 3), np.int64),
        patches=np.empty((0, 12), np.uint8),
        next_position=2,
    )


def order(connection: Connection, folder: str = "good", device: str = "cpu") -> EngineOrder:
    address, identity = connection
    return EngineOrder(address=address, identity=identity, folder=folder, config=EngineConfig(device=device), verbose=False)


class Started:
    """A client with a fake engine's process."""

    def __init__(self, folder: str = "good", device: str = "cpu", **options: Any) -> None:
        self.processes: list[EngineProcess] = []

        def launch(connection: Connection) -> EngineProcess:
            self.processes.append(EngineProcess(order(connection, folder, device), command=(str(FAKE),)))
            return self.processes[-1]

        self.client = EngineClient(launch, **{"restarts": QUICK, **options})

    @property
    def pid(self) -> int:
        return self.processes[-1].pid

    async def ready(self) -> "Started":
        await until(lambda: self.client.state in ("ready", "dead"))
        assert self.client.state == "ready", self.client.death
        return self

    async def tokens(self, first: int = 65, max_tokens: int | None = None) -> AsyncIterator[Tokens]:
        async for report in self.client.generate(prompt(first), SamplingParams(max_tokens=max_tokens)):
            if isinstance(report, Tokens):
                yield report

    async def count(self, max_tokens: int) -> int:
        return sum([len(report.token_ids) async for report in self.tokens(max_tokens=max_tokens)])


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, "not in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def run(test: Callable[[Started], Awaitable[None]], started: Callable[[], Started] = Started) -> None:
    """Run a test in an event loop; afterwards, nothing is left of its engine."""

    async def whole() -> None:
        it = started()
        it.client.start()
        try:
            await test(it)
        finally:
            await it.client.stop()
        assert all(process.exit_reason() is not None for process in it.processes)

    asyncio.run(asyncio.wait_for(whole(), 60))


@pytest.mark.parametrize("first", [KILLED, FAILED, LEFT])
def test_an_engine_that_ends_is_noticed_and_started_again(first: int, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(it: Started) -> None:
        await it.ready()
        bystander = it.tokens()
        await anext(bystander)
        pid = it.pid
        began = time.monotonic()
        with pytest.raises(EngineDeadError, match="SIGKILL|RuntimeError|code 7"):
            await anext(it.tokens(first))
        with pytest.raises(EngineDeadError):
            async for _ in bystander:
                pass
        assert time.monotonic() - began < 2
        assert it.client.state != "ready"
        with pytest.raises(EngineDeadError, match="restarting"):
            await it.count(1)
        await it.ready()
        assert await it.count(5) == 5
        assert (it.client.num_restarts, it.client.num_requests, it.pid != pid) == (1, 0, True)

    run(test)
    assert ("RuntimeError" in capfd.readouterr().err) == (first == FAILED)


def test_an_engine_killed_from_outside_when_idle() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        os.kill(it.pid, signal.SIGKILL)
        assert await until(lambda: it.client.state == "restarting") < 2
        await it.ready()
        assert await it.count(3) == 3

    run(test)


@pytest.mark.parametrize("how", ["in a step", "stopped"])
def test_an_engine_that_hangs_is_killed_and_started_again(how: str) -> None:
    async def test(it: Started) -> None:
        await it.ready()
        if how == "stopped":
            os.kill(it.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EngineDeadError, match=r"did not answer for 0.6 s"):
            await anext(it.tokens(HUNG))
        assert 0.6 < time.monotonic() - began < 2.5
        await it.ready()
        assert await it.count(3) == 3

    run(test, lambda: Started(timeout_s=0.6))


def test_an_idle_engine_that_answers_does_not_hang() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        await asyncio.sleep(1.5)
        assert (it.client.state, it.client.num_restarts) == ("ready", 0)

    run(test, lambda: Started(timeout_s=0.4))


def test_failures_in_a_row_end_it() -> None:
    async def test(it: Started) -> None:
        for _ in range(QUICK.most):
            await it.ready()
            with pytest.raises(EngineDeadError):
                await anext(it.tokens(LEFT))
        await it.ready()
        with pytest.raises(EngineDeadError):
            await anext(it.tokens(LEFT))
        await asyncio.wait_for(it.client.wait_dead(), 5)
        assert it.client.death is not None
        assert it.client.death.message == "the engine's process ended with code 7"
        assert len(it.processes) == QUICK.most + 1

    run(test)


def test_a_stable_time_begins_the_count_anew() -> None:
    async def test(it: Started) -> None:
        for _ in range(3):
            await it.ready()
            await asyncio.sleep(0.5)
            with pytest.raises(EngineDeadError):
                await anext(it.tokens(LEFT))
        await it.ready()

    run(test, lambda: Started(restarts=RestartPolicy(most=1, first_delay_s=0.01, stable_s=0.2)))


@pytest.mark.parametrize(
    ("folder", "cause", "words"), [("bad", "user", "weights (x) are damaged"), ("dies", "defect", "ended with code 9")]
)
def test_a_first_start_that_fails_is_the_end(folder: str, cause: str, words: str) -> None:
    async def test(it: Started) -> None:
        await asyncio.wait_for(it.client.wait_dead(), 10)
        assert it.client.death is not None
        assert (it.client.death.cause, len(it.processes)) == (cause, 1)
        assert words in it.client.death.message

    run(test, lambda: Started(folder))


def test_a_later_start_that_fails_is_tried_again_with_longer_waits(tmp_path: Path) -> None:
    async def test(it: Started) -> None:
        await it.ready()
        os.kill(it.pid, signal.SIGKILL)
        began = time.monotonic()
        await asyncio.wait_for(it.client.wait_dead(), 20)
        assert time.monotonic() - began > QUICK.delay_s(1) + QUICK.delay_s(2) + QUICK.delay_s(3)
        assert it.client.death is not None
        assert "have gone" in it.client.death.message
        assert len(it.processes) == QUICK.most + 1

    run(test, lambda: Started("only once", device=str(tmp_path / "loaded")))


def test_an_engine_keeps_few_compiled_shapes_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")

    async def test(it: Started) -> None:
        await it.ready()
        found = psutil.Process(it.pid).environ()
        assert (found["LRU_CACHE_CAPACITY"], found["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("128", "7")

    run(test, Started)


@pytest.mark.parametrize("folder", ["good", "never loads"])
def test_stop_leaves_no_process(folder: str) -> None:
    async def test(it: Started) -> None:
        if folder == "good":
            await it.ready()
        else:
            await asyncio.sleep(0.5)
        by_itself = await it.client.stop()
        assert by_itself == (folder == "good") or it.processes[-1].exit_reason() is not None
        assert it.client.death is not None
        assert it.client.death.cause == "stopped"

    run(test, lambda: Started(folder))


def test_stop_of_an_engine_that_hangs_is_bounded() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        os.kill(it.pid, signal.SIGSTOP)
        assert not await it.client.stop(timeout_s=0.3)

    run(test)


def test_ctrl_c_and_sigterm_leave_the_engine_to_the_server() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        os.kill(it.pid, signal.SIGINT)
        os.kill(it.pid, signal.SIGTERM)
        assert await it.count(20) == 20
        assert it.client.num_restarts == 0

    run(test)


def test_the_engine_ends_with_its_server(tmp_path: Path) -> None:
    """The server's process is killed: the engine, in the middle of its work, is gone in 2 s."""
    script = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_supervision as t\n"
        "async def main():\n"
        "    it = t.Started(); it.client.start(); await it.ready()\n"
        "    async for _ in it.tokens():\n"
        "        print(it.pid, flush=True)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(FAKE.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert psutil.pid_exists(pid)
        server.kill()
        server.wait(5)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(2)
        assert not psutil.pid_exists(pid)


def test_a_request_given_up_frees_its_pages_at_once() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        requests = [it.client.generate(prompt(), SamplingParams()) for _ in range(3)]
        for request in requests:
            await anext(request)
        await until(lambda: it.client.stats is not None and it.client.stats.num_running == 3)
        for request in requests:
            await request.aclose()
        await until(lambda: it.client.stats is not None and it.client.stats.num_running == 0, 1)

    run(test)


def test_stats_count_and_come_when_idle() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        assert await it.count(40) == 40
        await until(lambda: it.client.stats is not None and it.client.stats.num_running == 0)
        stats = it.client.stats
        assert stats is not None
        assert (stats.num_steps, stats.num_generated_tokens, stats.num_prompt_tokens, stats.num_free_pages) == (40, 40, 2, 100)
        assert 0.4 <= stats.step_s < 10

    run(test)


def test_who_reads_late_gets_everything_at_once() -> None:
    async def test(it: Started) -> None:
        await it.ready()
        slow = it.client.generate(prompt(), SamplingParams(max_tokens=30))
        await anext(slow)
        assert await it.count(40) == 40
        [rest] = [report async for report in slow]
        assert isinstance(rest, Tokens)
        assert (rest.token_ids, rest.num_tokens, rest.finish_reason) == ((65,) * 30, 30, "length")

    run(test)


@pytest.mark.parametrize("frames", [[b"nonsense"], [b"Dead", b"\x80"], [b"Stop", b"\x80"]])
def test_messages_of_strangers_and_nonsense_change_nothing(frames: list[bytes]) -> None:
    import zmq

    async def test(it: Started) -> None:
        await it.ready()
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(it.client._socket.address)
            stranger.send_multipart(frames)
            it.client._socket.send(it.client._identity, frames[:1])
            it.client._take([memoryview(frame) for frame in frames])
            assert await it.count(5) == 5

    run(test, lambda: Started(port=0))


def test_a_private_folder_and_a_port() -> None:
    async def test(it: Started) -> None:
        address = it.client._socket.address
        folder = Path(address.removeprefix("ipc://")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        await it.client.stop()
        assert not folder.exists()

    run(test)
    asyncio.run(_port_is_taken())


async def _port_is_taken() -> None:
    first = EngineClient(lambda _: EngineProcess.__new__(EngineProcess), port=0)
    port = int(first._socket.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"engine_port \({port}\) cannot be had: Address already in use"):
        EngineClient(lambda _: EngineProcess.__new__(EngineProcess), port=port)
    await first.stop()


def test_what_an_exit_is_called() -> None:
    assert describe_exit(-9).endswith("SIGKILL (the machine may be out of memory)")
    assert describe_exit(-11).endswith("SIGSEGV")
    assert describe_exit(3).endswith("code 3")
