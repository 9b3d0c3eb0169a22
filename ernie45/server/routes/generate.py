"""The routes that generate: chat and plain completions.

Knows nothing about parsing, the engine or text.
"""

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from ernie45.server.connection import EventStream, read_body, unless_disconnected
from ernie45.server.endpoint import CHAT, COMPLETIONS, Endpoint
from ernie45.server.protocol.answers import ChatChunk, ChatCompletion, Completion
from ernie45.server.routes.openapi import ENGINE, answer_docs, body_docs
from ernie45.server.service import Service, Streamed

_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/chart.png"}}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_CHAT_EXAMPLES = {
    "text": {"messages": [{"role": "user", "content": "What is 3 + 4?"}]},
    "a picture, without a thought": {
        "messages": [{"role": "user", "content": [_PICTURE, {"type": "text", "text": "Which bar is the highest?"}]}],
        "metadata": {"enable_thinking": False},
    },
    "a function to call": {
        "messages": [{"role": "user", "content": "How warm is it in Rome?"}],
        "tools": [{"type": "function", "function": {"name": "temperature", "parameters": _CITY}}],
        "tool_choice": "auto",
    },
    "an answer that matches a schema": {
        "messages": [{"role": "user", "content": "Which city is this?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY, "strict": True}},
    },
    "a stream with usage": {
        "messages": [{"role": "user", "content": "Tell a story."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 200,
    },
}
_COMPLETION_EXAMPLES = {
    "text": {"prompt": "Once upon a time", "max_tokens": 32},
    "scores of a text": {"prompt": "The sky is blue", "echo": True, "logprobs": 1, "max_tokens": 0},
}


def add_chat(app: FastAPI, service: Service) -> None:
    """POST /v1/chat/completions."""

    @app.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses=answer_docs(app, ENGINE, ChatChunk),
        openapi_extra=body_docs(app, CHAT.request, _CHAT_EXAMPLES),
    )
    async def chat_completions(request: Request) -> Response:
        return await respond(request, service, CHAT)


def add_completions(app: FastAPI, service: Service) -> None:
    """POST /v1/completions."""

    @app.post(
        "/v1/completions",
        summary="Go on with a text",
        response_model=Completion,
        responses=answer_docs(app, ENGINE, Completion),
        openapi_extra=body_docs(app, COMPLETIONS.request, _COMPLETION_EXAMPLES),
    )
    async def completions(request: Request) -> Response:
        return await respond(request, service, COMPLETIONS)


async def respond(request: Request, service: Service, endpoint: Endpoint[Any]) -> Response:
    """Read the body, answer it as the endpoint does, and stop the work if the client leaves."""
    body = await read_body(request, service.config.max_body_bytes, service.config.client_timeout_s)
    answer = await unless_disconnected(request.receive, service.answer(endpoint, body, request.headers.get("authorization")))
    return EventStream(answer.events, answer.close) if isinstance(answer, Streamed) else JSONResponse(answer)
