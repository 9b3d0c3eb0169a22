"""The HTTP routes: each a few lines over the service. OpenAI's chat completions, health, and the chat page.

Knows nothing about parsing, the engine or text.
"""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ernie45 import __version__
from ernie45.server.connection import DisconnectedError, EventStream, read_body, unless_disconnected
from ernie45.server.errors import ApiError
from ernie45.server.pages import add_pages
from ernie45.server.protocol import ChatRequest
from ernie45.server.service import ChatService, Streamed

_log = logging.getLogger("ernie45.server")
_CLIENT_CLOSED_REQUEST = 499


def create_app(service: ChatService, on_start: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """The application over a service; it starts and stops the service's engine. on_start: called after the start."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        service.engine.start()
        if on_start is not None:
            await on_start()
        yield
        await service.close()

    app = FastAPI(title="ernie45", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app, service)
    _add_chat(app, service)
    _add_state(app, service)
    add_pages(app)
    return app


def _add_chat(app: FastAPI, service: ChatService) -> None:
    body_schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = body_schema.pop("$defs", {})
    schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": body_schema}}}}

    @app.post("/v1/chat/completions", openapi_extra=schema, summary="Answer a conversation")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, service.config.max_body_bytes)
        answer = await unless_disconnected(request.receive, service.answer(body))
        return EventStream(answer.events, answer.close) if isinstance(answer, Streamed) else JSONResponse(answer)

    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain_openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return document

    app.openapi = openapi


def _add_state(app: FastAPI, service: ChatService) -> None:
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

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests are taken now")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)


def _add_errors(app: FastAPI, service: ChatService) -> None:
    """Every error leaves in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path[:80]
        rules = {404: f"path ({path!r}) is not served; see /openapi.json", 405: f"method ({request.method}) is not for {path}"}
        body = ApiError(error.status_code, rules.get(error.status_code, str(error.detail))).body
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(DisconnectedError)
    async def disconnected(request: Request, _: DisconnectedError) -> Response:
        _log.info("%s %s: the client has left", request.method, request.url.path)
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    app.add_middleware(_LastResort, service=service)


class _LastResort:
    """Turns a defect into a 500 in OpenAI's form, if nothing is sent yet, and into a log entry in any case."""

    def __init__(self, app: ASGIApp, service: ChatService) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched_send(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            api_error = self.service.to_api_error(error)
            if begun:
                raise
            await JSONResponse(api_error.body, api_error.status)(scope, receive, send)
