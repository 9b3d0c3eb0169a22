"""The body of a responses request: OpenAI's newer form of a conversation, made of items.

Knows nothing about what becomes of it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ernie45.server.protocol.base import ApiRequest, Strict
from ernie45.server.protocol.chat import ReasoningEffort
from ernie45.server.protocol.structured import JsonObjectFormat, JsonSchema, TextFormat
from ernie45.server.protocol.tools import MAX_TOOLS, FunctionDefinition, FunctionName, ToolChoiceMode, choice_form

MAX_ITEMS = 4096
_Status = Literal["in_progress", "completed", "incomplete"]
_ID = "of an item that is sent back; has no effect"
_STATUS = "of an item that is sent back; has no effect"


class InputText(Strict):
    """A text of the user's."""

    type: Literal["input_text"] = Field(description="input_text")
    text: str = Field(description="the text; control tokens written in it stay text")


class InputImage(Strict):
    """A picture."""

    type: Literal["input_image"] = Field(description="input_image")
    image_url: str = Field(min_length=1, description="data:...;base64,..., http(s)://..., or file://... if a folder is allowed")
    detail: Literal["auto"] | None = Field(None, description="only auto: the resolution follows the picture")


class OutputText(Strict):
    """A text of the model's."""

    type: Literal["output_text"] = Field(description="output_text")
    text: str = Field(description="the text")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="only empty: this model makes none")
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="only empty")


def content_form(value: Any) -> str:
    """Which alternative a content is meant to be."""
    return "text" if isinstance(value, str) else "parts"


_Part = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class MessageItem(Strict):
    """What somebody said."""

    type: Literal["message"] = Field("message", description="message; may be left out")
    role: Literal["user", "assistant", "system", "developer"] = Field(description="who speaks")
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[_Part], Tag("parts")], Discriminator(content_form)] = Field(
        description="a text, or parts; pictures only of users"
    )
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)
    phase: None = Field(None, description="only null")


class FunctionCallItem(Strict):
    """A call that the model has made."""

    type: Literal["function_call"] = Field(description="function_call")
    call_id: str = Field(min_length=1, description="what the output refers to")
    name: str = Field(min_length=1, max_length=128, description="the function")
    arguments: str = Field(description="its arguments, a JSON object as text")
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)
    namespace: None = Field(None, description="only null")


class FunctionOutputItem(Strict):
    """What a function gave back."""

    type: Literal["function_call_output"] = Field(description="function_call_output")
    call_id: str = Field(min_length=1, description="of the call")
    output: Annotated[Annotated[str, Tag("text")] | Annotated[list[InputText], Tag("parts")], Discriminator(content_form)] = (
        Field(description="the result, as the model shall read it")
    )
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)


class ReasoningText(Strict):
    """Text of a thought."""

    type: Literal["reasoning_text"] = Field(description="reasoning_text")
    text: str = Field(description="the text")


class SummaryText(Strict):
    """Text of a thought's summary."""

    type: Literal["summary_text"] = Field(description="summary_text")
    text: str = Field(description="the text")


class ReasoningItem(Strict):
    """A thought of the model's. Those before the last message of the user are not shown to it again."""

    type: Literal["reasoning"] = Field(description="reasoning")
    summary: list[SummaryText] = Field(description="taken where there is no content")
    content: list[ReasoningText] | None = Field(None, description="the thought")
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)
    encrypted_content: None = Field(None, description="only null: thoughts are not encrypted")


def _with_type(value: Any) -> Any:
    return {"type": "message"} | value if isinstance(value, dict) and "role" in value else value


Item = Annotated[
    Annotated[MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem, Field(discriminator="type")],
    BeforeValidator(_with_type),
]


class _FunctionType(Strict):
    type: Literal["function"] = Field(description="function")


class FunctionTool(FunctionDefinition, _FunctionType):
    """A function of the client's that the model may call."""


class FunctionChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = Field(description="function")
    name: FunctionName = Field(description="one of the tools")


class Reasoning(Strict):
    """How much the model thinks, and how the thought is sent."""

    effort: ReasoningEffort | None = Field(None, description="as reasoning_effort of a chat; none and minimal: no thought")
    summary: Literal["auto", "detailed"] | None = Field(
        None, description="send the thought as a summary, in full; default: as the item's content"
    )


class FlatJsonSchema(JsonSchema):
    """JSON that matches a schema."""

    type: Literal["json_schema"] = Field(description="json_schema")


class TextOptions(Strict):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | FlatJsonSchema, Field(discriminator="type")] | None = Field(
        None, description="text, json_object or json_schema"
    )
    verbosity: Literal["medium"] | None = Field(None, description="only medium")


class ResponsesRequest(ApiRequest):
    """Body of POST /v1/responses."""

    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS), Tag("parts")],
        Discriminator(content_form),
    ] = Field(description="what the user says: a text, or items of a conversation, oldest first")
    model: str | None = Field(None, description="a name listed by /v1/models, of an adapter too; may be left out")
    instructions: str | None = Field(None, description="a system message for this response alone")
    previous_response_id: str | None = Field(
        None, description="of a stored response whose conversation goes on; its instructions are not taken over"
    )
    store: bool | None = Field(
        None,
        description="keep the response in memory, to be fetched or continued, until there is no more room or the server stops; "
        "default: no",
    )
    stream: bool | None = Field(None, description="send the response as it comes, as typed server-sent events")
    max_output_tokens: int | None = Field(
        None, ge=1, le=2**31 - 1, description="tokens to generate at most, the thought included"
    )
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; default: of the model, else 1")
    top_p: float | None = Field(None, gt=0, le=1, description="default: of the model, else 0.7")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="the same seed and request give the same answer")
    reasoning: Reasoning | None = Field(None, description="how the model thinks")
    text: TextOptions | None = Field(None, description="the form of the answer")
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS, description="functions that the model may call")
    tool_choice: (
        Annotated[Annotated[ToolChoiceMode, Tag("mode")] | Annotated[FunctionChoice, Tag("named")], Discriminator(choice_form)]
        | None
    ) = Field(None, description="auto, none, required, or the function that must be called; as in a chat")
    parallel_tool_calls: bool | None = Field(None, description="whether one answer may have several calls; default: yes")
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="tags, which come back in the response"
    )
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1, description="lower goes first; default 0")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="cached prefixes are shared only with requests of the same salt"
    )
    user: str | None = Field(None, description="a name for the end user; has no effect")
    safety_identifier: str | None = Field(None, description="a name for the end user; has no effect")
    prompt_cache_key: str | None = Field(None, description="has no effect: all prefixes are cached; see cache_salt")

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "conversation": (),
        "context_management": ([],),
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "service_tier": ("auto", "default"),
        "stream_options": ({"include_obfuscation": False},),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }
