"""Traces: spans of known requests, in the caller's trace, with numbers and names and no content; nothing loaded when off."""

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ernie45.config.errors import ConfigError
from ernie45.server import operation, tracing
from ernie45.server.tracing import Tracing, open_tracing

SECRET = "xyzzy-secret"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Servers that are started in the test trace to it."""
    spans = InMemorySpanExporter()
    monkeypatch.setattr(operation, "open_tracing", lambda _, model: Tracing(SimpleSpanProcessor(spans), model))
    return spans


@pytest.fixture
def traced(start: Any, exporter: InMemorySpanExporter) -> Any:
    return start(trace_endpoint="http://127.0.0.1:9").wait()


def spans_of(exporter: InMemorySpanExporter, until: Any, root: str = "chat") -> tuple[Any, dict[str, Any]]:
    """The span of the one request that was made, and those below it by name."""
    until(lambda: any(span.name.startswith(root) for span in exporter.get_finished_spans()))
    spans = exporter.get_finished_spans()
    [request] = [span for span in spans if span.name.startswith(root)]
    return request, {span.name: span for span in spans if span is not request}


def test_spans_of_a_request(traced: Any, exporter: InMemorySpanExporter, until: Any, data_url: str) -> None:
    traced.engine.step_s = 0.01
    parts = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": SECRET}]
    usage = traced.answer(parts, temperature=0.5, max_tokens=4, seed=7)["usage"]
    request, below = spans_of(exporter, until)
    assert request.name == "chat fake"
    assert request.kind.name == "SERVER"
    expected = {
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "fake",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert {name: request.attributes[name] for name in expected} == expected
    assert {"media", "prefill", "decode"} <= set(below)
    assert below["media"].attributes["ernie45.num_images"] == 1
    assert below["decode"].attributes["ernie45.tokens"] == 4
    for span in below.values():
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert below["media"].end_time <= below["prefill"].start_time <= below["decode"].start_time
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert SECRET not in text
    assert "base64" not in text


def test_the_callers_trace_goes_on(traced: Any, exporter: InMemorySpanExporter, until: Any) -> None:
    traced.client.headers["traceparent"] = PARENT
    traced.answer()
    request, below = spans_of(exporter, until)
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {span.context.trace_id for span in below.values()} == {request.context.trace_id}


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", PARENT + "x" * 5000])
def test_a_bad_traceparent_begins_a_new_trace(traced: Any, exporter: InMemorySpanExporter, until: Any, header: str) -> None:
    traced.client.headers["traceparent"] = header
    traced.answer()
    assert spans_of(exporter, until)[0].parent is None


def test_a_caller_may_ask_for_no_trace(traced: Any, exporter: InMemorySpanExporter) -> None:
    traced.client.headers["traceparent"] = PARENT[:-1] + "0"
    traced.answer()
    assert traced.client.get("/v1/models").status_code == 200
    assert exporter.get_finished_spans() == ()


def test_errors_and_completions(traced: Any, exporter: InMemorySpanExporter, until: Any) -> None:
    assert traced.chat(temperature=-1).status_code == 400
    request, below = spans_of(exporter, until)
    assert (request.attributes["error.type"], below) == ("400", {})
    response = traced.client.post("/v1/completions", json={"prompt": SECRET, "n": 2, "max_tokens": 2})
    assert response.status_code == 200
    request, _ = spans_of(exporter, until, "text_completion")
    assert request.attributes["gen_ai.request.choice.count"] == 2
    assert request.attributes["gen_ai.usage.output_tokens"] == 4


def test_it_is_closed_with_the_server(traced: Any, exporter: InMemorySpanExporter) -> None:
    assert not exporter._stopped
    assert traced.stop() == 0
    assert exporter._stopped


def test_off_it_is_not_even_imported() -> None:
    """FastAPI loads OpenTelemetry's API by itself, where there is one; the SDK and the exporters are the weight."""
    code = (
        "import sys, ernie45.server.app; "
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tracing.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'ernie45\[trace\]'"):
        open_tracing("http://127.0.0.1:4318", "fake")


def test_a_bad_address() -> None:
    with pytest.raises(ConfigError, match=r"trace_endpoint \('localhost:4318'\) must begin with http"):
        open_tracing("localhost:4318", "fake")
