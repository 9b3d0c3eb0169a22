"""The form that an answer must have: OpenAI's response_format, FastDeploy's and vLLM's guided fields.

Knows nothing about how a form is enforced.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ernie45.server.protocol.base import Strict

MAX_GRAMMAR_CHARACTERS = 2**18
MAX_ALTERNATIVES = 1024

Grammar = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_ALTERNATIVES)]


def _schema_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


SchemaOrText = Annotated[
    Annotated[Grammar, Tag("text")] | Annotated[dict[str, Any], Tag("object")], Discriminator(_schema_form)
]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"] = Field(description="text")


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"] = Field(description="json_object")


class JsonSchema(Strict):
    """A JSON schema with a name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="letters, digits, _ and -")
    description: str | None = Field(None, description="what the form is for; has no effect")
    schema_: dict[str, Any] = Field(alias="schema", description="the schema")
    strict: bool | None = Field(
        None, description="refuse a schema that cannot be enforced in full; else keywords that cannot be are left out"
    )


class JsonSchemaFormat(Strict):
    """JSON that matches a schema."""

    type: Literal["json_schema"] = Field(description="json_schema")
    json_schema: JsonSchema = Field(description="the schema and its name")


class Structure(Strict):
    """JSON between two texts."""

    begin: str = Field(min_length=1, max_length=256, description="what stands before the JSON; begins with a trigger")
    schema_: dict[str, Any] = Field(alias="schema", description="of the JSON")
    end: str = Field(max_length=256, description="what stands behind the JSON")


class StructuralTag(Strict):
    """Free text, in which a trigger must go on as one of the structures that begin with it."""

    type: Literal["structural_tag"] = Field("structural_tag", description="structural_tag")
    structures: list[Structure] = Field(min_length=1, max_length=256, description="what may stand in the text")
    triggers: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        min_length=1, max_length=256, description="the texts that begin a structure"
    )


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTag, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """vLLM's object; exactly one of its fields."""

    json_: SchemaOrText | None = Field(None, alias="json", description="a JSON schema, as object or text")
    regex: Grammar | None = Field(None, description="a regular expression that the whole answer matches")
    choice: Choices | None = Field(None, description="the answer is one of these texts")
    grammar: Grammar | None = Field(None, description="a grammar in Lark or GBNF notation")
    json_object: bool | None = Field(None, description="any JSON object")
    structural_tag: Annotated[StructuralTag, Field()] | None = Field(None, description="structures inside free text")


class StructuredFields(Strict):
    """What a request says about the form of the answer; at most one of them. A thought before the answer has no form."""

    response_format: ResponseFormat | None = Field(None, description="text, json_object, json_schema or structural_tag")
    guided_json: SchemaOrText | None = Field(None, description="a JSON schema, as object or text (FastDeploy)")
    guided_regex: Grammar | None = Field(None, description="a regular expression that the whole answer matches (FastDeploy)")
    guided_choice: Choices | None = Field(None, description="the answer is one of these texts (FastDeploy)")
    guided_grammar: Grammar | None = Field(None, description="a grammar in Lark or GBNF notation (FastDeploy)")
    guided_json_object: bool | None = Field(None, description="whether the answer is any JSON object (FastDeploy)")
    structural_tag: Annotated[StructuralTag, Field()] | None = Field(
        None, description="structures inside free text (FastDeploy)"
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="the same as one object (vLLM)")
