"""How keys stand in the OpenAPI document: the scheme, the routes that want one, and those that do not.

Knows nothing about what the keys are.
"""

from typing import Any

from fastapi import FastAPI

from ernie45.server.auth import OPEN_PATHS

_SCHEME = {"type": "http", "scheme": "bearer", "description": "one of the keys of this server, in the header Authorization"}
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_REFUSED = {"description": "the key is missing or wrong", "content": _ERROR}


def declare_keys(app: FastAPI) -> None:
    """Every route wants a key but the open ones, which then never answer 401."""
    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain_openapi()
        document.setdefault("components", {})["securitySchemes"] = {"key": _SCHEME}
        document["security"] = [{"key": []}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path in OPEN_PATHS:
                    operation["security"] = []
                    operation["responses"].pop("401", None)
                else:
                    operation["responses"].setdefault("401", _REFUSED)
        return document

    app.openapi = openapi
