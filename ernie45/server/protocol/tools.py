"""Functions that the model may call, calls it has made, and which of them it must make.

Knows nothing about how a model writes a call.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ernie45.server.protocol.base import Strict

MAX_TOOLS = 256
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class FunctionDefinition(Strict):
    """A function of the client's."""

    name: FunctionName = Field(description="letters, digits, and _ . -")
    description: str | None = Field(None, description="what it does and when to call it; the model reads it")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments, an object; default: none")
    strict: bool | None = Field(
        None, description="refuse a schema that cannot be enforced in full; else keywords that cannot be are left out"
    )


class Tool(Strict):
    """Something that the model may call."""

    type: Literal["function"] = Field(description="function")
    function: FunctionDefinition = Field(description="the function")


class FunctionReference(Strict):
    """A function by name."""

    name: FunctionName = Field(description="one of the tools")


class NamedToolChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = Field(description="function")
    function: FunctionReference = Field(description="the function")


def choice_form(value: Any) -> str:
    """Which alternative a tool choice is meant to be."""
    return "named" if isinstance(value, dict) else "mode"


ToolChoiceMode = Literal["none", "auto", "required"]
ToolChoice = Annotated[
    Annotated[ToolChoiceMode, Tag("mode")] | Annotated[NamedToolChoice, Tag("named")], Discriminator(choice_form)
]


class ToolFields(Strict):
    """What a request says about tools."""

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(
        None,
        description="auto, the default: the model may call functions; none: it sees none; required: it must call at least one; "
        "or the function it must call. Where it must, the arguments match their schema",
    )


class FunctionCall(Strict):
    """Which function was called, and with what."""

    name: str = Field(min_length=1, max_length=128, description="the function")
    arguments: str = Field(description="its arguments, a JSON object as text")


class ToolCall(Strict):
    """A call that the model has made."""

    id: str | None = Field(None, description="what the result refers to")
    type: Literal["function"] = Field("function", description="function")
    function: FunctionCall = Field(description="the call")
    index: int | None = Field(None, description="of the call in a stream; has no effect")
