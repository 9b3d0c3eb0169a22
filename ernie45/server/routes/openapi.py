"""How a route whose body we parse ourselves still stands in the OpenAPI document.

Knows nothing about any one route.
"""

from typing import Any

from fastapi import FastAPI

from ernie45.server.protocol import ApiRequest

_REF = "#/components/schemas/{model}"


def body_docs(app: FastAPI, request: type[ApiRequest]) -> dict[str, Any]:
    """What `openapi_extra` of a route says about its body; the schemas it refers to are added to the document."""
    schema = request.model_json_schema(ref_template=_REF)
    app.state.schemas = getattr(app.state, "schemas", {}) | schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def complete_openapi(app: FastAPI) -> None:
    """Put the schemas of all bodies into the document."""
    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain_openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(getattr(app.state, "schemas", {}))
        return document

    app.openapi = openapi
