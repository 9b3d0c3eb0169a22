"""The routes about the server itself: models, health, version.

Knows nothing about requests that generate.
"""

import time
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from ernie45 import __version__
from ernie45.server.errors import ApiError
from ernie45.server.protocol.answers import ModelCard, ModelList, Status, Version
from ernie45.server.routes.openapi import ANY, answer_docs
from ernie45.server.service import Service


def add_models(app: FastAPI, service: Service) -> None:
    """GET /v1/models and /v1/models/NAME."""
    started = int(time.time())

    def cards() -> list[dict[str, Any]]:
        capacity, base = service.engine.capacity, service.config.model_name
        common = {"object": "model", "created": started, "owned_by": "ernie45", "root": base}
        common["max_model_len"] = capacity.max_model_len if capacity else None
        adapters = [{"id": name, "parent": base} | common for name in service.adapters]
        return [{"id": base, "parent": None} | common, *adapters]

    @app.get("/v1/models", summary="What may be asked for by name", response_model=ModelList, responses=answer_docs(app, ANY))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": cards()})

    @app.get(
        "/v1/models/{name:path}",  # a name may have slashes
        summary="One model or adapter",
        response_model=ModelCard,
        responses=answer_docs(app, (*ANY, 404)),
    )
    async def model(name: str) -> Response:
        card = next((card for card in cards() if card["id"] == name), None)
        if card is None:
            raise ApiError(
                404, f"model ({name[:80]!r}) is not served here; see /v1/models", param="model", code="model_not_found"
            )
        return JSONResponse(card)


def add_state(app: FastAPI, service: Service) -> None:
    """GET /health, /ready and /version."""

    @app.get("/health", summary="Whether the process lives", response_model=Status, responses=answer_docs(app, (405, 500)))
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    not_ready: dict[int | str, Any] = {503: {"model": Status, "description": "not now"}}

    @app.get(
        "/ready",
        summary="Whether requests are taken now",
        response_model=Status,
        responses=answer_docs(app, ANY) | not_ready,
    )
    async def ready() -> Response:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/version", summary="The version of the server", response_model=Version, responses=answer_docs(app, ANY))
    async def version() -> Response:
        return JSONResponse({"version": __version__})
