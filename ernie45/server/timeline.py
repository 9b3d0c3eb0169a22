"""When things happened to a request: one record for each HTTP request, one timeline for each answer in it.

Knows nothing about who reads it: metrics, access log and traces all do, so that they never disagree.
"""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.server.messages import Accepted, Tokens

Outcome = Literal["stop", "length", "abort", "error"]
Report = TypeVar("Report", bound=Accepted | Tokens)


@dataclass(kw_only=True)
class Timeline:
    """One answer. Times are of the monotonic clock, in seconds; None: not reached.

    arrived           the HTTP request; accepted: the engine has queued it; scheduled: its first step begins.
    prompt_key        equal for answers to the same prompt of one request.
    num_first_tokens  tokens that came at `first_token`.
    outcome           how it ended; "abort": the client left, or nobody wanted the rest.
    """

    arrived: float
    num_prompt_tokens: int
    max_tokens: int | None
    params: SamplingParams
    prompt_key: int = 0
    num_images: int = 0
    num_videos: int = 0
    accepted: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    num_cached_tokens: int = 0
    num_first_tokens: int = 0
    num_tokens: int = 0
    outcome: Outcome | None = None


@dataclass(kw_only=True)
class RequestRecord:
    """One HTTP request. began: monotonic clock; began_ns: the wall clock then, for traces.

    disconnected  the client left before the end of its response; timed_out: the request took longer than it may.
    media         when the fetching and decoding of pictures began and ended, if there were any.
    """

    request_id: str
    method: str = "GET"
    route: str = ""
    status: int = 0
    duration_s: float = 0.0
    disconnected: bool = False
    timed_out: bool = False
    began: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)
    media: tuple[float, float] | None = None
    model: str | None = None
    timelines: list[Timeline] = field(default_factory=list)

    @contextmanager
    def media_time(self) -> Iterator[None]:
        """What runs inside fetches and decodes pictures."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.media = (began, time.monotonic())


_current: ContextVar[RequestRecord | None] = ContextVar("ernie45_request", default=None)


def current_record() -> RequestRecord:
    """The record of the HTTP request that is being served; a new one, that nobody reads, outside of any."""
    return _current.get() or RequestRecord(request_id="-")


def begin_record(record: RequestRecord) -> None:
    """From here on, in this task and those it starts, `current_record` is this one."""
    _current.set(record)


class Observer(Protocol):
    """Who is told of an answer as it goes on (`metrics.ServerMetrics`)."""

    def accepted(self, timeline: Timeline) -> None: ...

    def tokens_came(self, timeline: Timeline, num_tokens: int, since_s: float | None) -> None: ...

    def ended(self, timeline: Timeline) -> None: ...


def observed(
    reports: AsyncGenerator[Report, None],
    prompt: ModelInput,
    params: SamplingParams,
    observer: Observer,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Report, None]:
    """The reports of one answer, unchanged, while its timeline is written. Closing it closes `reports`.

    The answer belongs to the HTTP request that is being served when this is called, whoever reads the reports.
    """
    record = current_record()
    return _observed(reports, record, _timeline(record, prompt, params), observer, clock)


async def _observed(
    reports: AsyncGenerator[Report, None],
    record: RequestRecord,
    timeline: Timeline,
    observer: Observer,
    clock: Callable[[], float],
) -> AsyncGenerator[Report, None]:
    try:
        async for report in reports:
            _note(timeline, report, observer, clock())
            yield report
    except Exception:
        timeline.outcome = "error"
        raise
    finally:
        await reports.aclose()
        if timeline.outcome is None:
            # Closed before the engine was done: by a client that left, a deadline, or a stop string, of which the engine
            # does not know.
            timeline.outcome = "abort" if record.disconnected or record.timed_out else "stop"
        if timeline.accepted is not None:
            observer.ended(timeline)


def _timeline(record: RequestRecord, prompt: ModelInput, params: SamplingParams) -> Timeline:
    kinds = [item.kind for item in prompt.media]
    timeline = Timeline(
        arrived=record.began,
        num_prompt_tokens=len(prompt),
        max_tokens=params.max_tokens,
        params=params,
        prompt_key=id(prompt),
        num_images=kinds.count("image"),
        num_videos=kinds.count("video"),
    )
    record.timelines.append(timeline)
    return timeline


def _note(timeline: Timeline, report: Accepted | Tokens, observer: Observer, now: float) -> None:
    if isinstance(report, Accepted):
        timeline.accepted = now
        observer.accepted(timeline)
        return
    if report.num_tokens:
        before, timeline.last_token = timeline.last_token, now
        timeline.num_tokens += report.num_tokens
        if before is None:
            timeline.first_token = now
            timeline.num_first_tokens = report.num_tokens
            timeline.num_cached_tokens = report.num_cached_tokens
            if timeline.accepted is not None and report.queue_s is not None:
                timeline.scheduled = min(timeline.accepted + report.queue_s, now)
        observer.tokens_came(timeline, report.num_tokens, None if before is None else now - before)
    if report.finish_reason is not None:
        timeline.outcome = report.finish_reason
