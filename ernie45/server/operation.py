"""What whoever runs a server asks of it: /metrics, /load, /dashboard, and around every route keys, access log and traces.

Knows nothing about requests that generate.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ernie45.server.access_log import AccessLog
from ernie45.server.auth import ApiKeys, RequireKey
from ernie45.server.dashboard import add_dashboard
from ernie45.server.host_check import CheckHost, is_loopback
from ernie45.server.metrics import metrics_response
from ernie45.server.protocol.answers import Load
from ernie45.server.routes.openapi import ANY, answer_docs
from ernie45.server.routes.security import declare_keys
from ernie45.server.service import Service
from ernie45.server.tracing import Tracing, open_tracing


def add_operation(app: FastAPI, service: Service) -> None:
    """The routes, and the layers around all routes of the application; call it when all others are added."""
    _add_metrics(app, service)
    add_dashboard(app)
    config = service.config
    keys = ApiKeys(config.api_keys)
    if len(keys):
        app.add_middleware(RequireKey, keys=keys)
        declare_keys(app)
    elif is_loopback(config.host):
        app.add_middleware(CheckHost, allowed=config.allowed_hosts)
    tracing = open_tracing(config.trace_endpoint, config.model_name) if config.trace_endpoint else None
    if tracing is not None:
        _close_at_the_end(app, tracing)
    app.add_middleware(AccessLog, metrics=service.metrics, on_done=(tracing.request_done,) if tracing else ())


def _close_at_the_end(app: FastAPI, tracing: Tracing) -> None:
    """What is not sent yet is sent when the application stops."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncGenerator[Any, None]:
        try:
            async with inner(application) as state:
                yield state
        finally:
            await asyncio.to_thread(tracing.close)

    app.router.lifespan_context = lifespan


def _add_metrics(app: FastAPI, service: Service) -> None:
    text: dict[int | str, Any] = {200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}}

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=text | answer_docs(app, ANY))
    async def metrics(request: Request) -> Response:
        return metrics_response(service.metrics, request)

    @app.get(
        "/load",
        summary="How much the server has to do, and how much it can",
        response_model=Load,
        responses=answer_docs(app, ANY),
    )
    async def load() -> Response:
        return JSONResponse(load_of(service))


def load_of(service: Service) -> dict[str, Any]:
    """The body of GET /load. `server_load` is what vLLM's has: requests for an answer that are in the server."""
    engine, stats, capacity = service.engine, service.engine.stats, service.engine.capacity
    return {
        "server_load": service.num_active,
        "max_num_requests": service.config.max_num_requests,
        "state": service.state,
        "engine": {
            "num_running": stats.num_running if stats else 0,
            "num_waiting": stats.num_waiting if stats else 0,
            "max_num_seqs": capacity.max_num_seqs if capacity else None,
            "num_pages": capacity.num_pages if capacity else None,
            "num_free_pages": stats.num_free_pages if stats else None,
            "num_restarts": engine.num_restarts,
        },
    }
