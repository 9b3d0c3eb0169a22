"""What all bodies have in common: strictness, and which fields of others are refused with what way out.

Knows nothing about any one body.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

MAX_TOKEN_ID = 2**31 - 1
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


def _fail_fast(schema: Any) -> None:
    """Only one fault is told; collecting those of a list of millions would take minutes."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _fail_fast(inner)


class Strict(BaseModel):
    """A part of a body: no unknown fields, no number written as a text, no NaN; the first fault of a list ends it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class ApiRequest(Strict):
    """A whole body.

    unsupported: fields of OpenAI's or FastDeploy's requests that this server cannot act on, with the values that ask for
    nothing and are therefore fine. null always asks for nothing.
    metadata_fields: fields that may also stand in `metadata`, where FastDeploy's older clients put them.
    """

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    metadata_fields: ClassVar[frozenset[str]] = frozenset()
