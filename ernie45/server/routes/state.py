"""The routes about the server itself: models, health, version.

Knows nothing about requests that generate.
"""

import time
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse

from ernie45 import __version__
from ernie45.server.service import Service


def add_models(app: FastAPI, service: Service) -> None:
    """GET /v1/models."""
    started = int(time.time())

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        capacity = service.engine.capacity
        model = {
            "id": service.config.model_name,
            "object": "model",
            "created": started,
            "owned_by": "ernie45",
            "max_model_len": capacity.max_model_len if capacity else None,
        }
        return {"object": "list", "data": [model]}


def add_state(app: FastAPI, service: Service) -> None:
    """GET /health, /ready and /version."""

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests are taken now")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/version", summary="The version of the server")
    async def version() -> dict[str, str]:
        return {"version": __version__}
