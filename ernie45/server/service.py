"""The life of a generating request: admitted, parsed, translated in a thread, run by the engine, answered.

Knows nothing about routes, sockets, the form of bodies and answers, or how the engine works.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ernie45.config.errors import Ernie45Error
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.server.endpoint import Endpoint, MediaOf, no_media
from ernie45.server.engine_client import EngineClient, EngineDeadError
from ernie45.server.errors import ApiError, from_user_error
from ernie45.server.job import Job, ServedModel, Task
from ernie45.server.media import RequestMedia, tenant_of
from ernie45.server.metrics import ServerMetrics
from ernie45.server.parse import parse_request
from ernie45.server.protocol import ApiRequest
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.stream import Deadline, Reports, Runs, events, read_all
from ernie45.server.structured import check_grammars
from ernie45.server.timeline import current_record, observed
from ernie45.server.tools import tool_format

_log = logging.getLogger("ernie45.server")
_NUM_TEXT_WORKERS = 2
_RETRY_AFTER_S = 1
# Name of the metric -> of `MediaCacheStats`.
_MEDIA_METRICS = {
    "media_cache_num_items": "num_items",
    "media_cache_bytes": "num_bytes",
    "media_cache_hits": "num_hits",
    "media_cache_misses": "num_misses",
}

T = TypeVar("T")
R = TypeVar("R", bound=ApiRequest)
State = Literal["loading", "ready", "restarting", "draining", "dead"]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A begun stream. close frees what it holds; call it once, whether the events were read or not."""

    events: AsyncGenerator[bytes, None]
    close: Callable[[], Awaitable[None]]


class Service:
    """Answers requests with one processor and one engine. All methods belong to one event loop."""

    def __init__(
        self, config: ServerConfig, processor: Processor, engine: EngineClient, defaults: SamplingDefaults | None = None
    ) -> None:
        self.config = config
        self.processor = processor
        self.engine = engine
        self.defaults = replace(defaults or SamplingDefaults(), seed=config.seed)
        self.num_active = 0
        self.num_jobs = 0
        self.draining = False
        self.metrics = ServerMetrics(engine)
        self.metrics.set_gauge("max_num_requests", config.max_num_requests)
        self.metrics.follow("num_requests_active", lambda: self.num_active)
        # Pictures are loaded elsewhere before, so that a host that answers slowly holds up pictures only.
        self._text_pool = ThreadPoolExecutor(_NUM_TEXT_WORKERS, thread_name_prefix="ernie45-text")
        # A large grammar takes a second, which texts must not wait for, however many such come.
        self._grammar_pool = ThreadPoolExecutor(1, thread_name_prefix="ernie45-grammar")
        self.media = RequestMedia(config, processor)
        for name, field in _MEDIA_METRICS.items():
            self.metrics.follow(name, lambda field=field: getattr(self.media.stats(), field))

    @property
    def state(self) -> State:
        return "draining" if self.draining else self.engine.state

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters, each of which may be asked for as a model."""
        return tuple(name for name, _ in self.config.engine.lora_modules)

    @property
    def served(self) -> ServedModel:
        """What requests are translated for. Only with an engine that is loaded."""
        assert self.engine.capacity is not None, self.state
        return ServedModel(
            processor=self.processor,
            defaults=self.defaults,
            names=(self.config.model_name, self.config.model),
            adapters=self.adapters,
            max_model_len=self.engine.capacity.max_model_len,
            allow_chat_template=self.config.trust_request_chat_template,
            tool_format=tool_format(self.config.tool_call_parser),
        )

    def owner_of(self, authorization: str | None) -> str:
        """Who may have what a request stores: those with its API key; everybody on an open server, where it says nothing."""
        return tenant_of(authorization, None) if self.config.api_keys else ""

    async def answer(self, endpoint: Endpoint[R], body: bytes, authorization: str | None = None) -> dict[str, Any] | Streamed:
        """One object, or a stream whose requests the engine has accepted. ApiError for everything that is wrong.

        authorization: the header; pictures that a client names by uuid are found only with the same.
        """
        self._admit()
        self.num_active += 1
        deadline = Deadline(self.config.request_timeout_s)
        run: _Run | None = None
        handed_over = False
        try:
            task = await deadline.run(self._translate(endpoint, body, authorization))
            run = self._begin(task, deadline)
            await run.runs.accept()  # or an error while there still is a status to tell it
            reply = endpoint.reply(task, self.processor.tokenizer)
            if not task.stream:
                await read_all(reply, run.runs)
                return reply.whole()
            handed_over = True
            return Streamed(events=events(reply, run.runs, self.to_api_error), close=lambda: self._close(run))
        except (Ernie45Error, EngineDeadError) as error:
            raise self.to_api_error(error) from error
        finally:
            if not handed_over:
                await self._close(run)

    async def compute(
        self,
        request: type[R],
        body: bytes,
        function: Callable[[R, ServedModel], T],
        media: MediaOf[R] = no_media,
        authorization: str | None = None,
    ) -> T:
        """What a function makes of a checked body, in a thread and without the engine. ApiError for everything wrong.

        media: as of an endpoint. authorization: the header.
        """
        self._admit()
        try:
            parsed = await self._in(self._text_pool, parse_request, body, request)
            served = await self._with_media(parsed, media, authorization)
            return await self._in(self._text_pool, function, parsed, served)
        except Ernie45Error as error:
            raise self.to_api_error(error) from error

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
        for pool in (self._text_pool, self._grammar_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        await self.media.close()
        return await self.engine.stop()

    def _admit(self) -> None:
        if self.state == "loading":
            raise ApiError(503, "the model is still being loaded; try again soon", code="loading", retry_after_s=_RETRY_AFTER_S)
        if self.state == "draining":
            raise ApiError(503, "the server is stopping; use another one", code="draining", retry_after_s=_RETRY_AFTER_S)
        if self.state in ("dead", "restarting"):
            raise self.to_api_error(EngineDeadError(self.engine.death.message if self.engine.death else "it is started again"))
        if max(self.num_active, self.num_jobs) >= self.config.max_num_requests:
            raise self._too_many(f"the server already has {max(self.num_active, self.num_jobs)} requests, its limit")

    def _too_many(self, rule: str) -> ApiError:
        return ApiError(429, f"{rule}; try again later", code="too_many_requests", retry_after_s=_RETRY_AFTER_S)

    async def _translate(self, endpoint: Endpoint[R], body: bytes, authorization: str | None) -> Task:
        request = await self._in(self._text_pool, parse_request, body, endpoint.request)
        grammars = await self._in(self._text_pool, endpoint.grammars, request)
        if grammars:
            await self._in(self._grammar_pool, check_grammars, grammars)
        served = await self._with_media(request, endpoint.media, authorization)
        return await self._in(self._text_pool, endpoint.translate, request, served)

    async def _with_media(self, request: R, media: MediaOf[R], authorization: str | None) -> ServedModel:
        served = replace(self.served, owner=self.owner_of(authorization))
        wanted = await self._in(self._text_pool, media, request, served)
        if wanted is None:
            return served
        with current_record().media_time():
            try:
                return replace(served, media=await self.media.load(wanted, authorization))
            except Ernie45Error as error:
                raise self.to_api_error(error).renamed(wanted.rename) from error

    def _begin(self, task: Task, deadline: Deadline) -> "_Run":
        """Hand a task to the engine. Each of its answers counts as a request."""
        limit, num_jobs = self.config.max_num_requests, len(task.jobs)
        if num_jobs > limit:
            rule = f"n times prompts ({num_jobs}) must be at most {limit}; ask for fewer"
            raise ApiError(400, rule, param="n", code="invalid_value")
        if self.num_jobs + num_jobs > limit:
            raise self._too_many(f"the server has {self.num_jobs} answers under way, and {num_jobs} more are above its limit")
        self.num_jobs += num_jobs
        return _Run(num_jobs=num_jobs, runs=Runs([self._reports(task, job) for job in task.jobs], deadline))

    def _reports(self, task: Task, job: Job) -> Reports:
        """What the engine says about one job."""
        reports = self.engine.generate(
            job.prompt, job.params, priority=task.priority, adapter=task.adapter, cache_salt=task.cache_salt
        )
        current_record().model = task.model
        return observed(reports, job.prompt, job.params, self.metrics)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

    async def _close(self, run: "_Run | None") -> None:
        self.num_active -= 1
        if run is not None:
            self.num_jobs -= run.num_jobs
            await run.runs.close_all()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A task at the engine, and how much it counts."""

    num_jobs: int
    runs: Runs
