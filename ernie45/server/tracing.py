"""OpenTelemetry traces: a span for each request, and below it media, queue, prefill and decode of its answers.

Knows nothing about how a request is served: spans are made from its record when it is done, so tracing costs the answer
nothing, and content cannot get into a span because no record has any. Attributes follow OpenTelemetry's GenAI conventions.
Only `open_tracing` imports OpenTelemetry.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ernie45 import __version__
from ernie45.config.errors import ConfigError
from ernie45.server.timeline import RequestRecord, Timeline

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, Tracer

_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/responses": "chat"}
_EXPORT_S = 3  # a collector that never answers must not hold up a stop
_MISSING = "trace_endpoint needs the extra 'trace', which is not installed; pip install 'ernie45[trace]', or leave it out"


def open_tracing(endpoint: str, model: str) -> Tracing:
    """Traces to an OTLP collector, by HTTP (its base address, for example http://127.0.0.1:4318).

    ConfigError if the address is none, or if OpenTelemetry is not installed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"trace_endpoint ({endpoint!r}) must begin with http:// or https://; give the collector's address")
    try:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    address = endpoint if endpoint.endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"
    return Tracing(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=address, timeout=_EXPORT_S)), model)


class Tracing:
    """Makes the spans of requests. Needs OpenTelemetry; `open_tracing` says so if it is missing."""

    def __init__(self, processor: SpanProcessor, model: str) -> None:
        resources = importlib.import_module("opentelemetry.sdk.resources")
        trace = importlib.import_module("opentelemetry.sdk.trace")
        self._api = importlib.import_module("opentelemetry.trace")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._extract = propagation.TraceContextTextMapPropagator().extract
        # A provider of its own: a program that embeds the server keeps its global one. A caller's decision to sample counts.
        self._provider: TracerProvider = trace.TracerProvider(
            resource=resources.Resource.create({"service.name": "ernie45", "service.version": __version__})
        )
        self._provider.add_span_processor(processor)
        self._tracer: Tracer = self._provider.get_tracer("ernie45.server", __version__)
        self._model = model

    def request_done(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """Make the spans of a request for an answer. A traceparent header makes them part of the caller's trace."""
        if record.route not in _OPERATIONS:
            return
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{_OPERATIONS[record.route]} {record.model or self._model}",
            context=self._extract(carrier),
            kind=self._api.SpanKind.SERVER,
            start_time=record.began_ns,
            attributes=request_attributes(record, self._model),
        )
        if record.status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        inside = self._api.set_span_in_context(span)
        if record.media is not None:
            self._child("media", record, record.media, inside, media_attributes(record))
        for index, timeline in enumerate(record.timelines):
            self._answer(record, timeline, inside, {"ernie45.choice": index})
        span.end(_nanoseconds(record, record.began + record.duration_s))

    def close(self) -> None:
        """Send what is not sent yet, within a few seconds."""
        self._provider.shutdown()

    def _answer(self, record: RequestRecord, timeline: Timeline, inside: Any, attributes: dict[str, Any]) -> None:
        begun = timeline.scheduled if timeline.scheduled is not None else timeline.accepted
        prefill = {"ernie45.prompt_tokens": timeline.num_prompt_tokens, "ernie45.cached_tokens": timeline.num_cached_tokens}
        decode = {"ernie45.tokens": timeline.num_tokens}
        phases = (
            ("queue", timeline.accepted, timeline.scheduled, {}),
            ("prefill", begun, timeline.first_token, prefill),
            ("decode", timeline.first_token, timeline.last_token, decode),
        )
        for name, begin, end, extra in phases:
            if begin is not None and end is not None:
                self._child(name, record, (begin, end), inside, attributes | extra)

    def _child(
        self, name: str, record: RequestRecord, times: tuple[float, float], inside: Any, attributes: dict[str, Any]
    ) -> None:
        begin, end = times
        span: Span = self._tracer.start_span(
            name, context=inside, start_time=_nanoseconds(record, begin), attributes=attributes
        )
        span.end(_nanoseconds(record, end))


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """A moment of the monotonic clock on the wall clock."""
    return record.began_ns + int((moment - record.began) * 1e9)


def request_attributes(record: RequestRecord, model: str) -> dict[str, Any]:
    """Of the span of a request: what was asked for and how it went, in numbers and names."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "gen_ai.operation.name": _OPERATIONS[record.route],
        "gen_ai.provider.name": "ernie45",
        "gen_ai.request.model": record.model or model,
        "gen_ai.response.model": model,
        "ernie45.request_id": record.request_id,
    }
    if record.status >= 400:
        attributes["error.type"] = str(record.status)
    if record.timelines:
        attributes |= _answer_attributes(record)
    return attributes


def _answer_attributes(record: RequestRecord) -> dict[str, Any]:
    first = record.timelines[0]
    prompts = {timeline.prompt_key: timeline.num_prompt_tokens for timeline in record.timelines}
    params = first.params
    attributes: dict[str, Any] = {
        "gen_ai.request.choice.count": len(record.timelines),
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.usage.input_tokens": sum(prompts.values()),
        "gen_ai.usage.output_tokens": sum(timeline.num_tokens for timeline in record.timelines),
        "gen_ai.response.finish_reasons": [timeline.outcome or "error" for timeline in record.timelines],
    }
    if params.top_k:
        attributes["gen_ai.request.top_k"] = float(params.top_k)
    if first.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = first.max_tokens
    if params.seed is not None:
        attributes["gen_ai.request.seed"] = params.seed
    if first.first_token is not None:
        attributes["ernie45.time_to_first_token"] = first.first_token - record.began
    return attributes


def media_attributes(record: RequestRecord) -> dict[str, Any]:
    """Of the span of fetching and decoding: how many of each kind, once for each prompt."""
    prompts = {timeline.prompt_key: timeline for timeline in record.timelines}.values()
    return {
        "ernie45.num_images": sum(timeline.num_images for timeline in prompts),
        "ernie45.num_videos": sum(timeline.num_videos for timeline in prompts),
    }
