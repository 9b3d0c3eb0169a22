"""Metrics: exact counts of known traffic, every line readable, counters that never go back, FastDeploy's names."""

import math
import re
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ernie45.checkpoint import read_config, resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.server import ServerConfig
from ernie45.engine.stats import SchedulerStats
from ernie45.processor import Processor
from ernie45.server.auth import ApiKeys
from ernie45.server.llm_engine import load_engine
from ernie45.server.messages import Capacity, Stats
from ernie45.server.metrics import ServerMetrics, metrics_app
from ernie45.server.metrics_table import (
    FASTDEPLOY_DERIVED,
    FASTDEPLOY_LEFT_OUT,
    FASTDEPLOY_NAMES,
    FASTDEPLOY_PREFIX,
    METRICS,
    PREFIX,
)
from ernie45.server.protocol.answers import Load

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Values:
    """Every sample of an exposition by name and labels; fails on a line that no parser reads, and on one that comes twice."""
    values: Values = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values, key
            values[key] = sample.value
    num_lines = sum(bool(line) and not line.startswith("#") for line in text.splitlines())
    assert len(values) == num_lines
    return values


def value(values: Values, name: str, **labels: str) -> float:
    return values.get((PREFIX + name, frozenset(labels.items())), 0.0)


@dataclass
class FakeSource:
    """An engine's client, as far as metrics read it."""

    state: str = "ready"
    capacity: Capacity | None = None
    stats: Stats | None = None
    num_restarts: int = 0


def scrape(server: Any) -> Values:
    return parsed(server.client.get("/metrics").text)


def test_counts_before_and_after_known_traffic(server: Any, engine: Any, until: Any) -> None:
    route = "/v1/chat/completions"
    before = scrape(server)
    engine.say("abcdefgh")
    usage = server.answer(enable_thinking=False)["usage"]
    server.events(enable_thinking=False, max_tokens=3)
    assert server.chat(temperature=-1).status_code == 400
    until(lambda: value(scrape(server), "num_requests_active") == 0)
    after = scrape(server)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert usage["completion_tokens"] == 9  # the token that ends an answer is one too
    assert grown("requests_total") == 2
    assert grown("prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grown("generation_tokens_total") == 9 + 3
    assert grown("request_success_total", finish_reason="stop") == 1
    assert grown("request_success_total", finish_reason="length") == 1
    assert grown("request_success_total", finish_reason="abort") == 0
    assert grown("request_errors_total", status="400") == 1
    assert grown("http_requests_total", method="POST", route=route, status="200") == 2
    assert grown("http_requests_total", method="POST", route=route, status="400") == 1
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_decode_time_seconds"):
        assert grown(f"{name}_count") == 2, name
    assert grown("request_generation_tokens_sum") == 12
    assert grown("request_prompt_tokens_sum") == 2 * usage["prompt_tokens"]
    assert grown("request_params_max_tokens_count") >= 1
    # All tokens but those that came first.
    assert 0 < grown("inter_token_latency_seconds_count") <= 10
    assert value(after, "max_num_requests") == server.config.max_num_requests
    assert value(after, "engine_up") == 1


def test_every_answer_of_a_request_counts(server: Any, engine: Any) -> None:
    before = scrape(server)
    engine.say("abc")
    server.answer(n=3, enable_thinking=False)
    after = scrape(server)
    name = "request_success_total"
    assert value(after, name, finish_reason="stop") - value(before, name, finish_reason="stop") == 3


def test_an_answer_that_nobody_waits_for_is_an_abort(server: Any, engine: Any, until: Any) -> None:
    before = value(scrape(server), "request_success_total", finish_reason="abort")
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    with server.client.stream("POST", "/v1/chat/completions", json=_STREAM) as response:
        next(response.iter_raw())
    until(lambda: value(scrape(server), "request_success_total", finish_reason="abort") == before + 1)
    until(lambda: value(scrape(server), "http_requests_total", method="POST", route="/v1/chat/completions", status="499") >= 1)


_STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def test_a_stop_string_is_a_stop(server: Any, engine: Any, until: Any) -> None:
    before = scrape(server)
    engine.say("so it ends here ", ends=False)
    engine.step_s = 0.005
    server.answer(stop="end", enable_thinking=False)
    server.answer(stop="end", enable_thinking=False, n=2)
    until(lambda: value(scrape(server), "num_requests_active") == 0)
    after = scrape(server)
    grown = {
        reason: value(after, "request_success_total", finish_reason=reason)
        - value(before, "request_success_total", finish_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    assert grown == {"stop": 3, "length": 0, "abort": 0, "error": 0}


def test_an_engine_that_breaks_is_an_error(start: Any, until: Any) -> None:
    server = start(restarts=1).wait()
    server.engine.fail_at = 2
    assert server.chat().status_code == 503
    server.engine.fail_at = None
    until(lambda: server.service.engine.num_restarts == 1 and server.service.state == "ready")
    server.answer()
    values = scrape(server)
    assert value(values, "request_success_total", finish_reason="error") == 1
    assert value(values, "request_errors_total", status="503") == 1
    assert value(values, "engine_restarts_total") == 1
    assert value(values, "engine_up") == 1


def test_an_engine_that_is_loaded_again_is_counted_once(start: Any, until: Any) -> None:
    server = start(restarts=1).wait()
    engine, client = server.engine, server.service.engine
    server.answer()
    until(lambda: client.stats.num_steps > 2 and client.stats.num_running == 0)
    before = value(scrape(server), "engine_steps_total")
    engine.loaded.clear()
    engine.fail_at = engine_steps_that_failed = 2
    assert server.chat().status_code == 503
    until(lambda: client.num_restarts == 1)
    while_it_loads = [value(scrape(server), name) for name in ("engine_steps_total", "engine_up", "num_requests_running")]
    engine.fail_at = None
    engine._running.clear()  # a new process would know nothing
    engine.loaded.set()
    until(lambda: client.state == "ready" and client.stats is not None)
    assert before <= while_it_loads[0] <= before + engine_steps_that_failed
    assert while_it_loads[1:] == [0, 0]
    assert value(scrape(server), "engine_steps_total") == while_it_loads[0]
    server.answer()
    until(lambda: client.stats.num_steps > 0 and client.stats.num_running == 0)
    assert value(scrape(server), "engine_steps_total") == while_it_loads[0] + client.stats.num_steps


def test_everything_in_the_table_is_exported(server: Any) -> None:
    server.answer()
    families = {family.name for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    names = {metric.exported.removesuffix("_total").removesuffix("_info") for metric in METRICS.values()}
    ours = {name.removesuffix("_info") for name in families if name.startswith(PREFIX)}
    assert ours == names
    theirs = {name.removesuffix("_info") for name in families if name.startswith(FASTDEPLOY_PREFIX)}
    assert theirs == {FASTDEPLOY_PREFIX + name for name in (*FASTDEPLOY_NAMES, *FASTDEPLOY_DERIVED)}
    assert not {*FASTDEPLOY_NAMES, *FASTDEPLOY_DERIVED} & {*FASTDEPLOY_LEFT_OUT}


def test_the_cache_of_pictures(server: Any, data_url: str) -> None:
    picture = [{"type": "image_url", "image_url": {"url": data_url}}]
    server.answer(picture)
    server.answer(picture)
    stats = server.service.media.stats()
    assert stats.num_hits > 0
    expected = {"num_items": stats.num_items, "bytes": stats.num_bytes}
    expected |= {"hits_total": stats.num_hits, "misses_total": stats.num_misses}
    text = server.client.get("/metrics").text
    for name, value in expected.items():
        assert f"ernie45:media_cache_{name} {float(value)}\n" in text


def test_labels_are_bounded(server: Any) -> None:
    before = len(scrape(server))
    for index in range(20):
        server.client.get(f"/no/such/{index}?secret={index}")
        server.client.request(f"ODD{index}", "/v1/models")
    after = scrape(server)
    assert len(after) - before < 60  # two series of counters, one histogram
    assert value(after, "http_requests_total", method="GET", route="unmatched", status="404") >= 20


def test_content_types(server: Any) -> None:
    plain = server.client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    modern = server.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")
    assert "_created" not in plain.text


def stats(**fields: Any) -> Stats:
    return Stats(num_pages=10, num_free_pages=4, num_cached_pages=1, **fields)


@pytest.fixture
def source() -> FakeSource:
    capacity = Capacity(max_model_len=100, max_num_seqs=8, num_pages=10, page_size=16)
    return FakeSource(capacity=capacity, stats=stats())


def exported(metrics: ServerMetrics) -> Values:
    return parsed(metrics.exposition("")[0].decode())


def test_counters_go_on_across_restarts(source: FakeSource) -> None:
    metrics = ServerMetrics(source)
    seen = []

    def look(num_preemptions: int | None, restarts: int) -> None:
        source.num_restarts = restarts
        source.stats = None if num_preemptions is None else stats(num_preemptions=num_preemptions)
        seen.append(value(exported(metrics), "num_preemptions_total"))

    look(3, 0)
    look(5, 0)
    look(None, 0)  # it died
    look(None, 1)
    look(2, 1)
    look(9, 2)  # died and came back between two scrapes, and has counted more than before
    look(1, 3)
    assert seen == [3, 5, 5, 5, 7, 16, 17]


def test_before_the_first_word_of_an_engine() -> None:
    values = exported(ServerMetrics(FakeSource(state="loading")))
    assert value(values, "engine_up") == 0
    assert (PREFIX + "max_num_seqs", frozenset()) not in values
    assert all(math.isfinite(number) for key, number in values.items() if not key[0].endswith("_bucket"))


def test_what_the_engine_tells(source: FakeSource) -> None:
    load = {"text": ((4, 0, 0, 0), (1, 1, 1, 1)), "vision": ((0, 0), (0, 0))}
    source.stats = stats(
        num_running=2, num_waiting=1, num_queried_tokens=100, num_hit_tokens=60, num_host_hit_tokens=20, num_disk_hit_tokens=10,
        num_encoded_units=3, num_encoder_hits=2, num_draft_tokens=8, num_accepted_tokens=6, expert_tokens=load,
    )  # fmt: skip
    values = exported(ServerMetrics(source))
    assert value(values, "kv_cache_usage_perc") == pytest.approx(0.6)
    assert [value(values, "prefix_cache_hits_total", tier=tier) for tier in ("device", "host", "disk")] == [30, 20, 10]
    assert value(values, "expert_tokens_total", pool="text", expert="0") == 5
    assert value(values, "expert_load_imbalance", pool="text", layer="0") == 4
    assert value(values, "expert_load_imbalance", pool="text", layer="1") == 1
    assert (PREFIX + "expert_load_imbalance", frozenset({("pool", "vision"), ("layer", "0")})) not in values
    assert value(values, "cache_config_info", page_size="16", num_pages="10") == 1

    def fastdeploy(name: str) -> float:
        return values[FASTDEPLOY_PREFIX + name, frozenset()]

    assert fastdeploy("available_batch_size") == 6
    assert fastdeploy("batch_size") == 2
    assert fastdeploy("free_gpu_block_num") == 3
    assert fastdeploy("available_gpu_block_num") == 4
    assert fastdeploy("available_gpu_resource") == pytest.approx(0.4)
    assert fastdeploy("gpu_cache_usage_perc") == pytest.approx(0.6)
    assert [fastdeploy(name) for name in ("hit_token_rate", "gpu_hit_token_rate", "cpu_hit_token_rate")] == [0.6, 0.3, 0.2]
    assert fastdeploy("prefix_storage_cache_token_num_total") == 10


def test_aliases_have_the_values_of_ours(server: Any) -> None:
    server.answer()
    values = scrape(server)
    for theirs, ours in FASTDEPLOY_NAMES.items():
        theirs, ours = FASTDEPLOY_PREFIX + theirs, PREFIX + ours
        pattern = re.compile(re.escape(ours) + r"(_total|_sum|_count|_bucket|_info|)$")
        same = {(theirs + match[1], key[1]): number for key, number in values.items() if (match := pattern.match(key[0]))}
        assert same, ours
        assert {key: values[key] for key in same} == same
    done = [value(values, "request_success_total", finish_reason=reason) for reason in ("stop", "length")]
    assert values[FASTDEPLOY_PREFIX + "request_success_total", frozenset()] == sum(done)


def test_the_other_port(source: FakeSource) -> None:
    metrics = ServerMetrics(source)
    client = TestClient(metrics_app(metrics))
    assert parsed(client.get("/metrics").text) == exported(metrics)
    assert client.get("/health").status_code == 200
    guarded = TestClient(metrics_app(metrics, ApiKeys(["k"])))
    assert guarded.get("/metrics").status_code == 401
    assert guarded.get("/metrics", headers={"Authorization": "Bearer k"}).status_code == 200
    assert guarded.get("/health").status_code == 200


def test_load(server: Any, engine: Any) -> None:
    load = server.client.get("/load").json()
    Load.model_validate(load)
    assert (load["server_load"], load["state"], load["max_num_requests"]) == (0, "ready", 512)
    assert load["engine"] == {
        "num_running": 0, "num_waiting": 0, "max_num_seqs": 4, "num_pages": 64, "num_free_pages": 0, "num_restarts": 0,
    }  # fmt: skip
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    with server.client.stream("POST", "/v1/chat/completions", json=_STREAM) as response:
        chunks = response.iter_raw()
        next(chunks)  # held: a dropped iterator closes the connection
        assert server.client.get("/load").json()["server_load"] == 1


def test_keys_are_in_no_repr_of_the_config() -> None:
    assert "sk-secret" not in repr(ServerConfig(model="tiny", api_keys=("sk-secret",)))


def test_every_number_of_an_engine_reaches_the_stats() -> None:
    """Names are what joins the two; those that the loop counts, and what is fetched from the device, come otherwise."""
    otherwise = {"num_steps", "num_prompt_tokens", "num_generated_tokens", "step_s", "expert_tokens"}
    known = {field.name for field in fields(SchedulerStats)}
    assert {field.name for field in fields(Stats)} - otherwise <= known


def test_a_real_engine(start: Any, until: Any) -> None:
    folder = resolve_model("tiny")
    engine = SimpleNamespace(load=lambda: load_engine(folder, EngineConfig(num_pages=64)))
    server = start(engine, processor=Processor.from_dir(folder)).wait()
    usage = [server.answer("What is 47+12? " * 4, temperature=0, max_tokens=8)["usage"] for _ in range(2)][-1]
    until(lambda: value(scrape(server), "generation_tokens_total") == 16 and value(scrape(server), "num_requests_running") == 0)
    until(lambda: value(scrape(server), "prefix_cache_hits_total", tier="device") > 0)
    values = scrape(server)
    assert value(values, "prefix_cache_hits_total", tier="device") == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert value(values, "cached_prompt_tokens_total") == usage["prompt_tokens_details"]["cached_tokens"]
    assert value(values, "request_queue_time_seconds_count") == 2
    assert value(values, "request_prefill_time_seconds_count") == 2
    assert value(values, "kv_cache_num_pages") == 64
    num_computed = 2 * usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] + 2 * 7
    tokens = {key: number for key, number in values.items() if key[0] == PREFIX + "expert_tokens_total"}
    text = sum(number for (_, labels), number in tokens.items() if ("pool", "text") in labels)
    config = read_config(folder)
    pool = next(pool for pool in config.expert_pools if pool.modality == "text")
    layers = sum(("pool", "text") in labels for (name, labels) in values if name == PREFIX + "expert_load_imbalance")
    assert text == num_computed * pool.num_active * layers
