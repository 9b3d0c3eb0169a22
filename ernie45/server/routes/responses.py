"""OpenAI's responses: create, fetch, delete.

Knows nothing about parsing, the engine or text.
"""

from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from ernie45.server.errors import ApiError
from ernie45.server.protocol.responses import ResponsesRequest
from ernie45.server.responses.store import ResponseStore, Stored
from ernie45.server.responses.translate import responses_endpoint
from ernie45.server.routes.generate import respond
from ernie45.server.routes.openapi import ANY, ENGINE, answer_docs, body_docs
from ernie45.server.service import Service

_EXAMPLES = {
    "text": {"input": "What is 3 + 4?"},
    "a picture": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": "https://example.org/chart.png"},
                    {"type": "input_text", "text": "Which bar is the highest?"},
                ],
            }
        ]
    },
    "a stored response": {"input": "Remember 7.", "store": True, "reasoning": {"effort": "none"}},
}


class ResponseObject(BaseModel):
    """A response, in the form of OpenAI's `Response`."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="resp_ and a random name")
    object: Literal["response"] = Field(description="response")
    created_at: int = Field(description="when, in seconds since 1970")
    status: Literal["in_progress", "completed", "incomplete", "failed"] = Field(
        description="incomplete: max_output_tokens ended it"
    )
    model: str = Field(description="the model or adapter that answered")
    output: list[dict[str, Any]] = Field(description="items of type reasoning, message and function_call, in order")
    usage: dict[str, Any] | None = Field(description="input_tokens, output_tokens, total_tokens, and details")


class ResponseEvent(BaseModel):
    """One event of a stream. The last is response.completed, response.incomplete or response.failed."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="response.created, response.output_text.delta, ...: as OpenAI's, also the event's name")
    sequence_number: int = Field(description="counts the events")


class Deleted(BaseModel):
    """What is gone."""

    id: str = Field(description="of the response")
    object: Literal["response"] = Field(description="response")
    deleted: Literal[True] = Field(description="true")


def add_responses(app: FastAPI, service: Service) -> None:
    """POST /v1/responses, GET and DELETE /v1/responses/{response_id}."""
    store = ResponseStore()
    endpoint = responses_endpoint(store)
    missing = answer_docs(app, (*ANY, 400, 404))

    def owner(request: Request) -> str:
        return service.owner_of(request.headers.get("authorization"))

    @app.post(
        "/v1/responses",
        summary="Answer a conversation of items",
        response_model=ResponseObject,
        responses=answer_docs(app, ENGINE, ResponseEvent),
        openapi_extra=body_docs(app, ResponsesRequest, _EXAMPLES),
    )
    async def create(request: Request) -> Response:
        return await respond(request, service, endpoint)

    @app.get("/v1/responses/{response_id}", summary="A stored response", response_model=ResponseObject, responses=missing)
    async def fetch(response_id: str, request: Request) -> Response:
        for name in request.query_params:
            raise ApiError(400, f"{name[:80]} is not supported here; leave it out", param=name, code="unsupported_parameter")
        return JSONResponse(_found(store.get(response_id, owner(request)), response_id).response)

    @app.delete("/v1/responses/{response_id}", summary="Forget a stored response", response_model=Deleted, responses=missing)
    async def delete(response_id: str, request: Request) -> Response:
        _found(store.get(response_id, owner(request)), response_id)
        store.delete(response_id, owner(request))
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _found(stored: Stored | None, response_id: str) -> Stored:
    if stored is None:
        rule = f"response_id ({response_id[:80]!r}) is not kept here; responses are kept only with store, and not forever"
        raise ApiError(404, rule, param="response_id", code="response_not_found")
    return stored
