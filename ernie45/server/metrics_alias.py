"""FastDeploy's names for our metrics, so that its dashboards and alerts move over.

Knows nothing about how a value comes about: everything here is read from the families that are exported anyway.
"""

from collections.abc import Callable, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from ernie45.server.metrics_table import FASTDEPLOY_DERIVED, FASTDEPLOY_NAMES, FASTDEPLOY_PREFIX, PREFIX


def fastdeploy_families(families: Sequence[Family]) -> list[Family]:
    """One family for each of FastDeploy's names that has a meaning here, from ours."""
    ours = {family.name.removeprefix(PREFIX): family for family in families}
    same = [_renamed(ours[source], FASTDEPLOY_PREFIX + name) for name, source in FASTDEPLOY_NAMES.items()]
    return same + [_derived(name, ours) for name in FASTDEPLOY_DERIVED]


def _renamed(family: Family, name: str) -> Family:
    copy = Family(name, family.documentation, family.type)
    for sample in family.samples:
        copy.samples.append(sample._replace(name=name + sample.name.removeprefix(family.name)))
    return copy


def _derived(name: str, ours: dict[str, Family]) -> Family:
    kind, value = _DERIVED[name]
    return kind(FASTDEPLOY_PREFIX + name, FASTDEPLOY_DERIVED[name], value=value(lambda *of: _sum(ours, *of)))


def _sum(ours: dict[str, Family], name: str, *values: str) -> float:
    """All series of a family together, or those that have one of these label values."""
    samples = ours[name].samples
    return sum(sample.value for sample in samples if not values or set(values) & set(sample.labels.values()))


_Sum = Callable[..., float]


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _hit_rate(*tier: str) -> tuple[type[Family], Callable[[_Sum], float]]:
    return GaugeMetricFamily, lambda get: _ratio(get("prefix_cache_hits", *tier), get("prefix_cache_queries"))


def _hit_tokens(*tier: str) -> tuple[type[Family], Callable[[_Sum], float]]:
    return CounterMetricFamily, lambda get: get("prefix_cache_hits", *tier)


_DERIVED: dict[str, tuple[type, Callable[[_Sum], float]]] = {
    "request_success": (CounterMetricFamily, lambda get: get("request_success", "stop", "length")),
    "available_batch_size": (GaugeMetricFamily, lambda get: get("max_num_seqs") - get("num_requests_running")),
    "free_gpu_block_num": (
        GaugeMetricFamily,
        lambda get: get("kv_cache_num_free_pages") - get("kv_cache_num_cached_pages"),
    ),
    "available_gpu_resource": (
        GaugeMetricFamily,
        lambda get: _ratio(get("kv_cache_num_free_pages"), get("kv_cache_num_pages")),
    ),
    "hit_req_rate": (GaugeMetricFamily, lambda get: _ratio(get("requests_with_cached_prompt"), get("requests"))),
    "hit_token_rate": _hit_rate(),
    "gpu_hit_token_rate": _hit_rate("device"),
    "cpu_hit_token_rate": _hit_rate("host"),
    "prefix_cache_token_num": _hit_tokens(),
    "prefix_gpu_cache_token_num": _hit_tokens("device"),
    "prefix_cpu_cache_token_num": _hit_tokens("host"),
    "prefix_storage_cache_token_num": _hit_tokens("disk"),
}
assert _DERIVED.keys() == FASTDEPLOY_DERIVED.keys()
