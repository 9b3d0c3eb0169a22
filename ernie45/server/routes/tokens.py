"""The routes between text and token ids.

Knows nothing about parsing or tokenizers.
"""

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from ernie45.server.connection import read_body, unless_disconnected
from ernie45.server.protocol import DetokenizeRequest, TokenizeRequest
from ernie45.server.protocol.answers import Detokenized, Tokens
from ernie45.server.routes.openapi import BODY, answer_docs, body_docs
from ernie45.server.service import Service
from ernie45.server.tokens import detokenize, tokenize
from ernie45.server.translate import media_request

_EXAMPLES = {"text": {"prompt": "Hello"}, "conversation": {"messages": [{"role": "user", "content": "Hello"}]}}


def add_tokens(app: FastAPI, service: Service) -> None:
    """POST /tokenize and /detokenize."""

    @app.post(
        "/tokenize",
        summary="Token ids of a text or a conversation",
        response_model=Tokens,
        responses=answer_docs(app, BODY),
        openapi_extra=body_docs(app, TokenizeRequest, _EXAMPLES),
    )
    async def tokenize_route(request: Request) -> Response:
        body = await read_body(request, service.config.max_body_bytes, service.config.client_timeout_s)
        work = service.compute(TokenizeRequest, body, tokenize, media_request, request.headers.get("authorization"))
        return JSONResponse(await unless_disconnected(request.receive, work))

    @app.post(
        "/detokenize",
        summary="Text of token ids",
        response_model=Detokenized,
        responses=answer_docs(app, BODY),
        openapi_extra=body_docs(app, DetokenizeRequest, {"ids": {"tokens": [1, 2, 3]}}),
    )
    async def detokenize_route(request: Request) -> Response:
        body = await read_body(request, service.config.max_body_bytes, service.config.client_timeout_s)
        return JSONResponse(await unless_disconnected(request.receive, service.compute(DetokenizeRequest, body, detokenize)))
