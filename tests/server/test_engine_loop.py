"""The engine's side of the boundary: what is prepared beside the steps, and what is kept at a stop."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import Grammar, SamplingParams
from ernie45.server.engine_client import EngineClient
from ernie45.server.llm_engine import load_engine
from ernie45.server.messages import Generate
from tests.server.conftest import EngineThread, FakeEngine


def prompt(length: int = 2) -> ModelInput:
    places = np.repeat(np.arange(length)[:, None], 3, axis=1)
    return ModelInput(
        token_ids=np.arange(65, 65 + length),
        is_vision=np.zeros(length, bool),
        positions=places,
        patches=np.empty((0, 12), np.uint8),
        next_position=length,
    )


def with_client(engine: FakeEngine, inside: Callable[[EngineClient], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        client = EngineClient(partial(EngineThread, engine.load))
        client.start()
        await client.wait_loaded()
        try:
            await asyncio.wait_for(inside(client), 10)
        finally:
            assert await client.stop()

    asyncio.run(run())


async def drained(client: EngineClient, seed: int | None) -> int:
    return len([report async for report in client.generate(prompt(), SamplingParams(seed=seed, max_tokens=3))])


def test_others_run_while_a_request_is_prepared(new_engine: FakeEngine):
    slow: Future[None] = Future()
    new_engine.preparing[1] = slow

    async def inside(client: EngineClient) -> None:
        waiting = asyncio.create_task(drained(client, 1))
        await asyncio.sleep(0.05)
        assert await drained(client, 2) > 1
        assert [request.params.seed for request in new_engine.requests] == [2]
        slow.set_result(None)
        assert await waiting > 1

    with_client(new_engine, inside)
    assert [request.params.seed for request in new_engine.requests] == [2, 1]
    assert new_engine.num_closed == 1


def test_what_cannot_be_prepared_is_refused(new_engine: FakeEngine):
    bad: Future[None] = Future()
    new_engine.preparing[1] = bad

    async def inside(client: EngineClient) -> None:
        bad.set_exception(RequestError("grammar must be another"))
        with pytest.raises(RequestError, match="must be another"):
            await drained(client, 1)

    with_client(new_engine, inside)
    assert not new_engine.requests


def test_who_leaves_while_he_is_prepared_is_never_queued(new_engine: FakeEngine):
    slow: Future[None] = Future()
    new_engine.preparing[1] = slow

    async def inside(client: EngineClient) -> None:
        waiting = asyncio.create_task(drained(client, 1))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.sleep(0.05)
        assert slow.cancelled()
        assert await drained(client, 2) > 1

    with_client(new_engine, inside)
    assert [request.params.seed for request in new_engine.requests] == [2]


def test_a_stop_keeps_the_cache_on_disk(tmp_path: Path):
    engine = load_engine(resolve_model("tiny"), EngineConfig(disk_cache_folder=tmp_path, num_pages=64))
    engine.submit(Generate(request_id="a", prompt=prompt(60), params=SamplingParams(max_tokens=2)))
    while engine.has_work:
        engine.step()
    engine.close()
    assert list(tmp_path.glob("*/*.page"))


def test_grammars_are_compiled_beside_the_steps():
    engine = load_engine(resolve_model("tiny"), EngineConfig(num_pages=64))

    def request(text: str) -> Generate:
        params = SamplingParams(stop_token_ids=(1,), grammar=Grammar(kind="regex", text=text), max_tokens=4)
        return Generate(request_id=text, prompt=prompt(), params=params)

    good, bad = engine.prepare(request("a{2}")), engine.prepare(request("("))
    assert good is not None
    assert bad is not None
    good.result()
    with pytest.raises(RequestError):
        bad.result()
    engine.submit(request("a{2}"))
    engine.close()
    assert engine.prepare(Generate(request_id="b", prompt=prompt(), params=SamplingParams())) is None
