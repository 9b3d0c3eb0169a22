"""The life of a chat request: admitted, parsed, translated in a thread, run by the engine, answered.

Knows nothing about routes, sockets or how the engine works.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ernie45.config.errors import Ernie45Error
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.processor.tokenizer import IncrementalDecoder
from ernie45.server.answer import Answer
from ernie45.server.engine_client import EngineClient, EngineDeadError
from ernie45.server.errors import ApiError, from_user_error
from ernie45.server.messages import Accepted, Tokens
from ernie45.server.parse import parse_chat_request
from ernie45.server.stream import Reply, events, whole_answer
from ernie45.server.translate import Job, SamplingDefaults, check_model, has_media, translate

_log = logging.getLogger("ernie45.server")
_NUM_TEXT_WORKERS = 2
_RETRY_AFTER_S = 1

T = TypeVar("T")
State = Literal["loading", "ready", "draining", "dead"]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A begun stream. close frees what it holds; call it once, whether the events were read or not."""

    events: AsyncGenerator[bytes, None]
    close: Callable[[], Any]


class ChatService:
    """Answers chat requests with one processor and one engine. All methods belong to one event loop."""

    def __init__(
        self, config: ServerConfig, processor: Processor, engine: EngineClient, defaults: SamplingDefaults | None = None
    ) -> None:
        self.config = config
        self.processor = processor
        self.engine = engine
        self.defaults = defaults or SamplingDefaults()
        self.num_active = 0
        self.draining = False
        # Texts have threads of their own, so that a picture host that answers slowly holds up pictures only.
        self._text_pool = ThreadPoolExecutor(_NUM_TEXT_WORKERS, thread_name_prefix="ernie45-text")
        self._media_pool = ThreadPoolExecutor(config.num_media_workers, thread_name_prefix="ernie45-media")

    @property
    def state(self) -> State:
        return "draining" if self.draining else self.engine.state

    async def answer(self, body: bytes) -> dict[str, Any] | Streamed:
        """One object, or a stream whose request the engine has accepted. ApiError for everything that is wrong."""
        self._admit()
        self.num_active += 1
        reports = None
        handed_over = False
        try:
            job, model = await self._translate(body)
            reports = self.engine.generate(job.prompt, job.params)
            await anext(reports)  # accepted, or an error while there still is a status to tell it
            answer = Answer(IncrementalDecoder(self.processor.tokenizer), job.thinking, job.stop)
            reply = Reply(model=model, job=job, answer=answer)
            if not job.stream:
                return await whole_answer(reply, reports)
            handed_over = True
            return self._streamed(reply, reports)
        except (Ernie45Error, EngineDeadError) as error:
            raise self.to_api_error(error) from error
        finally:
            if not handed_over:
                await self._close(reports)

    def to_api_error(self, error: Exception) -> ApiError:
        """What a client may know of an error; a defect of ours is logged and stays unnamed."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, Ernie45Error):
            return from_user_error(error)
        if isinstance(error, EngineDeadError):
            return ApiError(503, f"the engine is not running: {error}; try again later", code="engine_dead", retry_after_s=5)
        _log.error("a request failed", exc_info=error)
        return ApiError(500, "an error inside the server, see its log; this is a defect", code="internal_error")

    async def drain(self, timeout_s: float) -> None:
        """Admit nothing more and wait for running answers; those not done in time end with an error."""
        self.draining = True
        end = asyncio.get_running_loop().time() + timeout_s
        while self.num_active and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        self.engine.end_streams("the server is stopping")

    async def close(self) -> bool:
        """Stop engine and threads; whether the engine ended in time."""
        self._text_pool.shutdown(wait=False, cancel_futures=True)
        self._media_pool.shutdown(wait=False, cancel_futures=True)
        return await self.engine.stop()

    def _admit(self) -> None:
        if self.state == "loading":
            raise ApiError(503, "the model is still being loaded; try again soon", code="loading", retry_after_s=_RETRY_AFTER_S)
        if self.state == "draining":
            raise ApiError(503, "the server is stopping; use another one", code="draining", retry_after_s=_RETRY_AFTER_S)
        if self.num_active >= self.config.max_num_requests:
            rule = f"the server already has {self.num_active} requests, its limit; try again later"
            raise ApiError(429, rule, code="too_many_requests", retry_after_s=_RETRY_AFTER_S)

    async def _translate(self, body: bytes) -> tuple[Job, str]:
        request = await self._in(self._text_pool, parse_chat_request, body)
        check_model(request.model, [self.config.model_name, self.config.model])
        pool = self._media_pool if has_media(request) else self._text_pool
        assert self.engine.capacity is not None, self.state
        length = self.engine.capacity.max_model_len
        return await self._in(pool, translate, request, self.processor, self.defaults, length), self.config.model_name

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

    def _streamed(self, reply: Reply, reports: AsyncGenerator[Accepted | Tokens, None]) -> Streamed:
        async def close() -> None:
            await self._close(reports)

        return Streamed(events=events(reply, reports, self.to_api_error), close=close)

    async def _close(self, reports: AsyncGenerator[Accepted | Tokens, None] | None) -> None:
        self.num_active -= 1
        if reports is not None:
            await reports.aclose()
