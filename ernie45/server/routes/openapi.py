"""How routes stand in the OpenAPI document: bodies that we parse ourselves, streams, errors, examples.

Knows nothing about any one route.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from ernie45.server.protocol import ApiRequest
from ernie45.server.protocol.answers import ErrorBody

_REF = "#/components/schemas/{model}"
_RETRY = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
_ERRORS: dict[int, str] = {
    400: "a value cannot be: `error.param` names the field, `error.message` the rule and a way out",
    401: "the key is missing or wrong, if the server asks for one",
    404: "the model is not served here",
    405: "the path has no such method",
    408: "the body did not come in time",
    413: "the body is larger than the server takes",
    415: "the body is not declared as application/json",
    429: "the server has as many requests as it takes",
    499: "for the log alone: the client has left before the answer",
    500: "a defect of the server, which its log describes",
    503: "the model is being loaded, the server is stopping, or its engine has failed",
    504: "the request took longer than the server allows",
}
# What any route may answer; those that take a body and those that need the engine have more.
ANY = (401, 405, 500)
BODY = (*ANY, 400, 404, 408, 413, 415, 429, 503)
ENGINE = (*BODY, 499, 504)


def body_docs(app: FastAPI, request: type[ApiRequest], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `openapi_extra` of a route says about its body; the schemas it refers to are added to the document.

    examples: name -> a body.
    """
    content: dict[str, Any] = {"schema": _schema(app, request)}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def answer_docs(app: FastAPI, statuses: tuple[int, ...], event: type[BaseModel] | None = None) -> dict[int | str, Any]:
    """What `responses` of a route says: each of these errors and, with `event`, that the answer may be a stream of such."""
    docs: dict[int | str, Any] = {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in sorted(statuses)}
    for status in {429, 503} & set(docs):
        docs[status]["headers"] = _RETRY
    docs.pop(499, None)  # nobody is there to get it
    if event is not None:
        schema = _schema(app, event)
        name = schema.get("title", event.__name__)
        app.state.schemas[name] = schema
        docs[200] = {"description": "the answer, or its pieces as they come", "content": {"text/event-stream": _stream(name)}}
    return docs


def complete_openapi(app: FastAPI) -> None:
    """Put the schemas of bodies and events into the document, and take out FastAPI's 422, which is never sent."""
    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain_openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(getattr(app.state, "schemas", {}))
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi


def _stream(event: str) -> dict[str, Any]:
    """A stream of server-sent events, of which each has such an object, or an error, in JSON."""
    objects = [{"$ref": _REF.format(model=name)} for name in (event, ErrorBody.__name__)]
    json_data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": objects}}
    about = f"a {event} or an error, as JSON; [DONE] in the last event"
    data: dict[str, Any] = {"type": "string", "description": about, "anyOf": [{"const": "[DONE]"}, json_data]}
    kind = {"type": "string", "description": "message, unless the stream names its events"}
    properties = {"data": data, "event": kind}
    return {"schema": {"type": "object", "description": "one event", "properties": properties, "required": ["data"]}}


def _schema(app: FastAPI, model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF)
    app.state.schemas = getattr(app.state, "schemas", {}) | schema.pop("$defs", {})
    return schema
