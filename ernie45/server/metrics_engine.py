"""What the engine tells of itself as Prometheus families; counters go on where they were when it is started again.

Knows nothing about the server's own metrics or about HTTP.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family

from ernie45.server.messages import Capacity, Stats
from ernie45.server.metrics_table import ENGINE_METRICS, PREFIX, Metric

_NOTHING = Stats()
# Label values of one series -> its value.
Series = Mapping[tuple[str, ...], float]


class EngineSource(Protocol):
    """What is read of an engine's client.

    stats         None before an engine's first word, and from the end of one until the first word of the next.
    num_restarts  times the engine was started again.
    """

    @property
    def state(self) -> str: ...

    @property
    def capacity(self) -> Capacity | None: ...

    @property
    def stats(self) -> Stats | None: ...

    @property
    def num_restarts(self) -> int: ...


class EngineTotals:
    """The engine's families. `collect` may come from any thread."""

    def __init__(self, engine: EngineSource) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._num_restarts = 0
        self._ended: dict[tuple[str, tuple[str, ...]], float] = {}  # what engines before this one had counted
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}

    def collect(self) -> Iterable[Family]:
        """One family for each entry of the table, in its order."""
        with self._lock:
            if self._engine.num_restarts != self._num_restarts:
                self._num_restarts = self._engine.num_restarts
                self._begin_again()
            return [self._family(metric, _READ[metric.name](self._engine)) for metric in ENGINE_METRICS]

    def _begin_again(self) -> None:
        for key, value in self._seen.items():
            self._ended[key] = self._ended.get(key, 0.0) + value
        self._seen = {}

    def _family(self, metric: Metric, series: Series) -> Family:
        name, labels = PREFIX + metric.name, metric.labels
        if metric.kind == "info":
            info = InfoMetricFamily(name, metric.help)
            for values in series:
                info.add_metric([], dict(zip(labels, values, strict=True)))
            return info
        if metric.kind == "gauge":
            gauge = GaugeMetricFamily(name, metric.help, labels=labels)
            for values, value in series.items():
                gauge.add_metric(values, value)
            return gauge
        counter = CounterMetricFamily(name, metric.help, labels=labels)
        for values, value in self._continued(metric, series):
            counter.add_metric(values, value)
        return counter

    def _continued(self, metric: Metric, series: Series) -> Iterator[tuple[tuple[str, ...], float]]:
        """The series of a counter with what engines before this one had counted."""
        for values, value in series.items():
            key = (metric.name, values)
            if metric.name != "engine_restarts":
                if value < self._seen.get(key, 0.0):  # the engine began again and its client has not said so yet
                    self._ended[key] = self._ended.get(key, 0.0) + self._seen[key]
                self._seen[key] = value
            yield values, value + self._ended.get(key, 0.0)


def _one(read: Callable[[Stats], float]) -> Callable[[EngineSource], Series]:
    return lambda engine: {(): float(read(engine.stats or _NOTHING))}


def _limit(name: str) -> Callable[[EngineSource], Series]:
    """A number of the engine's capacity; no series before it is known."""
    return lambda engine: {} if engine.capacity is None else {(): float(getattr(engine.capacity, name))}


def _cache_config(engine: EngineSource) -> Series:
    capacity = engine.capacity
    return {} if capacity is None else {(str(capacity.page_size), str(capacity.num_pages)): 1.0}


def _hits(engine: EngineSource) -> Series:
    stats = engine.stats or _NOTHING
    device = stats.num_hit_tokens - stats.num_host_hit_tokens - stats.num_disk_hit_tokens
    return {("device",): device, ("host",): stats.num_host_hit_tokens, ("disk",): stats.num_disk_hit_tokens}


def _usage(stats: Stats) -> float:
    return (stats.num_pages - stats.num_free_pages) / stats.num_pages if stats.num_pages else 0.0


def _expert_tokens(engine: EngineSource) -> Series:
    return {
        (pool, str(expert)): float(sum(column))
        for pool, layers in (engine.stats or _NOTHING).expert_tokens.items()
        for expert, column in enumerate(zip(*layers, strict=True))
    }


def _imbalance(engine: EngineSource) -> Series:
    return {
        (pool, str(layer)): max(counts) * len(counts) / sum(counts)
        for pool, layers in (engine.stats or _NOTHING).expert_tokens.items()
        for layer, counts in enumerate(layers)
        if sum(counts)
    }


_READ: dict[str, Callable[[EngineSource], Series]] = {
    "engine_up": lambda engine: {(): float(engine.state == "ready")},
    "engine_restarts": lambda engine: {(): float(engine.num_restarts)},
    "num_requests_running": _one(lambda stats: stats.num_running),
    "num_requests_waiting": _one(lambda stats: stats.num_waiting),
    "max_num_seqs": _limit("max_num_seqs"),
    "max_model_len": _limit("max_model_len"),
    "cache_config": _cache_config,
    "kv_cache_usage_perc": _one(_usage),
    "kv_cache_num_pages": _one(lambda stats: stats.num_pages),
    "kv_cache_num_free_pages": _one(lambda stats: stats.num_free_pages),
    "kv_cache_num_cached_pages": _one(lambda stats: stats.num_cached_pages),
    "engine_steps": _one(lambda stats: stats.num_steps),
    "engine_step_seconds": _one(lambda stats: stats.step_s),
    "num_preemptions": _one(lambda stats: stats.num_preemptions),
    "prefix_cache_queries": _one(lambda stats: stats.num_queried_tokens),
    "prefix_cache_hits": _hits,
    "encoder_cache_queries": _one(lambda stats: stats.num_encoded_units + stats.num_encoder_hits),
    "encoder_cache_hits": _one(lambda stats: stats.num_encoder_hits),
    "spec_decode_num_draft_tokens": _one(lambda stats: stats.num_draft_tokens),
    "spec_decode_num_accepted_tokens": _one(lambda stats: stats.num_accepted_tokens),
    "expert_tokens": _expert_tokens,
    "expert_load_imbalance": _imbalance,
}
assert _READ.keys() == {metric.name for metric in ENGINE_METRICS}
