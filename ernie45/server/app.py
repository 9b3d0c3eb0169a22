"""The application: groups of routes over one service, and errors in OpenAI's form.

Knows nothing about parsing, the engine or text.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ernie45 import __version__
from ernie45.server.connection import DisconnectedError
from ernie45.server.errors import ApiError
from ernie45.server.operation import add_operation
from ernie45.server.pages import add_pages
from ernie45.server.routes.generate import add_chat, add_completions
from ernie45.server.routes.openapi import complete_openapi
from ernie45.server.routes.responses import add_responses
from ernie45.server.routes.state import add_models, add_state
from ernie45.server.routes.tokens import add_tokens
from ernie45.server.service import Service

_log = logging.getLogger("ernie45.server")
_CLIENT_CLOSED_REQUEST = 499
# Each adds its routes to an application.
ROUTE_GROUPS: tuple[Callable[[FastAPI, Service], None], ...] = (
    add_chat,
    add_completions,
    add_responses,
    add_tokens,
    add_models,
    add_state,
    add_pages,
)


def create_app(service: Service, on_start: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """The application over a service; it starts and stops the service's engine. on_start: called after the start."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        service.engine.start()
        if on_start is not None:
            await on_start()
        yield
        await service.close()

    app = FastAPI(
        title="ernie45", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    _add_errors(app, service)
    for add_routes in ROUTE_GROUPS:
        add_routes(app, service)
    complete_openapi(app)
    add_operation(app, service)
    return app


def _add_errors(app: FastAPI, service: Service) -> None:
    """Every error leaves in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path[:80]
        method = request.method[:20]
        rules = {404: f"path ({path!r}) is not served; see /openapi.json", 405: f"method ({method}) is not for {path}"}
        body = ApiError(error.status_code, rules.get(error.status_code, str(error.detail))).body
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(DisconnectedError)
    async def disconnected(request: Request, _: DisconnectedError) -> Response:
        _log.info("%s %s: the client has left", request.method, request.url.path)
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    app.add_middleware(_LastResort, service=service)


class _LastResort:
    """Turns a defect into a 500 in OpenAI's form, if nothing is sent yet, and into a log entry in any case."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
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
