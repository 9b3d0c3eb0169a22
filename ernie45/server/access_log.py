"""The outermost layer of the application: a record of each request, told to the log, the metrics and the traces.

Knows nothing about routes or answers. What it writes is what it lists here: never a path as it came, a query, a header, a
body or a key, as any of them may be a secret or somebody's words.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ernie45.server.metrics import ServerMetrics
from ernie45.server.timeline import RequestRecord, begin_record

CLIENT_CLOSED_REQUEST = 499
UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Asked every second by whoever watches, also while the answer is no; in the metrics, but not in the log.
_PROBES = frozenset({"/health", "/ready", "/metrics", "/load", "/ping"})
_MAX_ID = 128
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._:\-]")

_log = logging.getLogger("ernie45.access")


class AccessLog:
    """Middleware. The id of a request comes from X-Request-Id or is made here, and goes back in X-Request-Id.

    on_done: told of each request when its response has ended, for example to trace it.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, on_done: Sequence[Callable[[RequestRecord, Headers], None]] = ()):
        self.app = app
        self.metrics = metrics
        self.on_done = on_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        record = RequestRecord(request_id=request_id(headers.get("x-request-id")), method=method)
        begin_record(record)
        watch = _Watch(record, receive, send)
        try:
            await self.app(scope, watch.receive, watch.send)
        finally:
            record.route = route_of(scope)
            record.duration_s = time.monotonic() - record.began
            if record.disconnected:
                record.status = CLIENT_CLOSED_REQUEST
            elif not record.status:
                record.status = 500
            self._tell(record, headers, scope)

    def _tell(self, record: RequestRecord, headers: Headers, scope: Scope) -> None:
        self.metrics.responded(record.method, record.route, record.status, record.duration_s)
        for told in self.on_done:
            told(record, headers)
        level = logging.DEBUG if record.route in _PROBES and record.status in (200, 503) else logging.INFO
        if _log.isEnabledFor(level):
            fields = fields_of(record, scope.get("client"))
            text = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _IN_TEXT)
            _log.log(
                level,
                "%s %s %d %.3f s %s",
                record.method, record.route, record.status, record.duration_s, text,
                extra={"fields": fields},
            )  # fmt: skip


_IN_TEXT = ("method", "route", "status", "duration_s")


class _Watch:
    """What passes between a server and the application, noted in a record."""

    def __init__(self, record: RequestRecord, receive: Receive, send: Send) -> None:
        self._record = record
        self._receive = receive
        self._send = send
        self._complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._record.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self._record.request_id
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._complete = True
        await self._send(message)


def request_id(given: str | None) -> str:
    """A client's id without what could forge a line of a log, cut to a sane length; a new one if nothing is left."""
    return _NOT_IN_ID.sub("", given or "")[:_MAX_ID] or uuid.uuid4().hex


def route_of(scope: Scope) -> str:
    """The path of the route as it is declared, not as it was asked for; "unmatched" if there is none."""
    route = scope.get("route")
    if route is not None:
        return route.path
    # Refused before it reached a route: its path is still one of ours, if it is word for word.
    path: str = scope["path"]
    declared = {getattr(route, "path", None) for route in getattr(scope.get("app"), "routes", ())}
    return path if path in declared else UNMATCHED


def fields_of(record: RequestRecord, client: tuple[str, int] | None) -> dict[str, Any]:
    """What the log says of a request. Prompts that several answers share count once."""
    prompts = {timeline.prompt_key: timeline for timeline in record.timelines}
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "client": client[0] if client else None,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "duration_s": round(record.duration_s, 6),
    }
    if record.timelines:
        first = [t.first_token for t in record.timelines if t.first_token is not None]
        fields |= {
            "prompt_tokens": sum(timeline.num_prompt_tokens for timeline in prompts.values()),
            "cached_tokens": sum(timeline.num_cached_tokens for timeline in prompts.values()),
            "completion_tokens": sum(timeline.num_tokens for timeline in record.timelines),
            "finish": ",".join(timeline.outcome or "-" for timeline in record.timelines),
        }
        if first:
            fields["ttft_s"] = round(min(first) - record.began, 6)
    return {name: value for name, value in fields.items() if value is not None}
