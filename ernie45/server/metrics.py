"""Prometheus metrics of one server: its own registry, what the server observes, and how it is scraped.

Knows nothing about the engine's side (`metrics_engine`), and uses no global registry: two servers in a process stay apart.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ernie45.server.auth import ApiKeys, RequireKey
from ernie45.server.metrics_alias import fastdeploy_families
from ernie45.server.metrics_engine import EngineSource, EngineTotals
from ernie45.server.metrics_table import METRICS, PREFIX, SERVER_METRICS, Metric
from ernie45.server.timeline import Timeline

_WRAPPERS = {"counter": Counter, "gauge": Gauge}
# Label values of each family that exist from the start, so that a rate is 0 before the first event and not absent.
_FINISH_REASONS = ("stop", "length", "abort", "error")


class ServerMetrics:
    """All metrics of one server. Recording belongs to one event loop; a scrape may come from any thread."""

    def __init__(self, engine: EngineSource) -> None:
        self._registry = CollectorRegistry()
        self._of: dict[str, Counter | Gauge | Histogram] = {}
        for metric in SERVER_METRICS:
            name = PREFIX + metric.name
            if metric.kind == "histogram":
                made = Histogram(name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)
            else:
                made = _WRAPPERS[metric.kind](name, metric.help, metric.labels, registry=self._registry)
            self._of[metric.name] = made
        for reason in _FINISH_REASONS:
            self._of["request_success"].labels(reason)
        self.totals = EngineTotals(engine)
        self._exported = _Exported(self._registry, self.totals)

    def count(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Add to a counter."""
        counter = self._of[name]
        assert isinstance(counter, Counter), name
        (counter.labels(*labels) if labels else counter).inc(amount)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add one observation to a histogram."""
        histogram = self._of[name]
        assert isinstance(histogram, Histogram), name
        (histogram.labels(*labels) if labels else histogram).observe(max(value, 0.0))

    def set_gauge(self, name: str, value: float) -> None:
        """Say what a gauge of the server is now."""
        gauge = self._of[name]
        assert isinstance(gauge, Gauge), name
        gauge.set(value)

    def follow(self, name: str, read: Callable[[], float]) -> None:
        """Read a gauge of the server, or a counter that is kept elsewhere, with every scrape."""
        followed = self._of[name]
        if isinstance(followed, Gauge):
            followed.set_function(read)
        else:
            self._registry.unregister(self._of.pop(name))
            self._registry.register(_Followed(METRICS[name], read))

    def accepted(self, timeline: Timeline) -> None:
        """The engine has queued an answer."""
        self.count("requests")
        self.count("prompt_tokens", timeline.num_prompt_tokens)
        self.observe("request_prompt_tokens", timeline.num_prompt_tokens)
        if timeline.max_tokens is not None:
            self.observe("request_params_max_tokens", timeline.max_tokens)
        if timeline.accepted is not None:
            self.observe("request_preparation_time_seconds", timeline.accepted - timeline.arrived)

    def tokens_came(self, timeline: Timeline, num_tokens: int, since_s: float | None) -> None:
        """An answer got tokens. since_s: seconds since its tokens before; None for the first."""
        self.count("generation_tokens", num_tokens)
        if since_s is not None:
            for _ in range(num_tokens):
                self.observe("inter_token_latency_seconds", since_s / num_tokens)
            return
        assert timeline.first_token is not None, timeline
        self.observe("time_to_first_token_seconds", timeline.first_token - timeline.arrived)
        self.count("cached_prompt_tokens", timeline.num_cached_tokens)
        self.count("requests_with_cached_prompt", timeline.num_cached_tokens > 0)
        if timeline.scheduled is not None and timeline.accepted is not None:
            self.observe("request_queue_time_seconds", timeline.scheduled - timeline.accepted)
            self.observe("request_prefill_time_seconds", timeline.first_token - timeline.scheduled)

    def ended(self, timeline: Timeline) -> None:
        """An answer has ended, for whatever reason; once for each that was accepted."""
        assert timeline.outcome is not None, timeline
        self.count("request_success", 1, timeline.outcome)
        self.observe("request_generation_tokens", timeline.num_tokens)
        if timeline.first_token is None or timeline.last_token is None:
            return
        decode_s = timeline.last_token - timeline.first_token
        self.observe("e2e_request_latency_seconds", timeline.last_token - timeline.arrived)
        self.observe("request_decode_time_seconds", decode_s)
        if timeline.scheduled is not None:
            self.observe("request_inference_time_seconds", timeline.last_token - timeline.scheduled)
        if timeline.num_tokens > timeline.num_first_tokens:
            per_token_s = decode_s / (timeline.num_tokens - timeline.num_first_tokens)
            self.observe("request_time_per_output_token_seconds", per_token_s)
            self.observe("request_generation_rate", 1 / max(per_token_s, 1e-9))

    def responded(self, method: str, route: str, status: int, duration_s: float) -> None:
        """An HTTP request is done."""
        self.count("http_requests", 1, method, route, str(status))
        self.observe("http_request_duration_seconds", duration_s, route)
        if status >= 400 and route.startswith("/v1/") and method == "POST":
            self.count("request_errors", 1, str(status))

    def families(self) -> list[Family]:
        """All families as they are exported now: ours, the engine's, and FastDeploy's names for them."""
        return list(self._exported.collect())

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text for a scraper that sends this Accept header, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._exported), content_type  # type: ignore[arg-type]  it is a Collector, all that an encoder asks of


class _Exported(Collector):
    """The registry and the engine's families, without the `_created` series, then the same as FastDeploy names them."""

    def __init__(self, registry: CollectorRegistry, totals: EngineTotals) -> None:
        self._registry = registry
        self._totals = totals

    def collect(self) -> Iterable[Family]:
        families = [_without_created(family) for family in self._registry.collect()]
        families += self._totals.collect()
        return [*families, *fastdeploy_families(families)]


class _Followed(Collector):
    """A counter that somebody else keeps."""

    def __init__(self, metric: Metric, read: Callable[[], float]) -> None:
        assert metric.kind == "counter", metric
        self._metric = metric
        self._read = read

    def describe(self) -> Iterable[Family]:
        return [CounterMetricFamily(PREFIX + self._metric.name, self._metric.help)]

    def collect(self) -> Iterable[Family]:
        return [CounterMetricFamily(PREFIX + self._metric.name, self._metric.help, value=self._read())]


def _without_created(family: Family) -> Family:
    """When a series began doubles what is scraped and is shown nowhere."""
    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return family


def metrics_response(metrics: ServerMetrics, request: Request) -> Response:
    """The answer to GET /metrics."""
    content, content_type = metrics.exposition(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def metrics_app(metrics: ServerMetrics, keys: ApiKeys | None = None) -> Starlette:
    """The application of --metrics-port: /metrics behind the same keys as the API, and /health, which is open."""
    started = time.monotonic()

    async def scrape(request: Request) -> Response:
        return metrics_response(metrics, request)

    async def health(_: Request) -> Response:
        return Response(f'{{"status":"ok","uptime_s":{time.monotonic() - started:.0f}}}', media_type="application/json")

    guard = [Middleware(RequireKey, keys=keys)] if keys is not None and len(keys) else []
    return Starlette(routes=[Route("/metrics", scrape), Route("/health", health)], middleware=guard)
