"""The routes that generate: chat and plain completions.

Knows nothing about parsing, the engine or text.
"""

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from ernie45.server.connection import EventStream, read_body, unless_disconnected
from ernie45.server.endpoint import CHAT, COMPLETIONS, Endpoint
from ernie45.server.routes.openapi import body_docs
from ernie45.server.service import Service, Streamed


def add_chat(app: FastAPI, service: Service) -> None:
    """POST /v1/chat/completions."""

    @app.post("/v1/chat/completions", openapi_extra=body_docs(app, CHAT.request), summary="Answer a conversation")
    async def chat_completions(request: Request) -> Response:
        return await respond(request, service, CHAT)


def add_completions(app: FastAPI, service: Service) -> None:
    """POST /v1/completions."""

    @app.post("/v1/completions", openapi_extra=body_docs(app, COMPLETIONS.request), summary="Go on with a text")
    async def completions(request: Request) -> Response:
        return await respond(request, service, COMPLETIONS)


async def respond(request: Request, service: Service, endpoint: Endpoint[Any]) -> Response:
    """Read the body, answer it as the endpoint does, and stop the work if the client leaves."""
    body = await read_body(request, service.config.max_body_bytes)
    answer = await unless_disconnected(request.receive, service.answer(endpoint, body))
    return EventStream(answer.events, answer.close) if isinstance(answer, Streamed) else JSONResponse(answer)
