"""From a checked responses request to a task, by way of a chat request.

Knows nothing about HTTP, threads or how the engine works.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from ernie45.config.errors import Ernie45Error
from ernie45.config.sampling import Grammar
from ernie45.server.endpoint import Endpoint
from ernie45.server.errors import ApiError, from_user_error
from ernie45.server.job import ServedModel, Task
from ernie45.server.media import MediaRequest
from ernie45.server.protocol import ChatRequest, Message
from ernie45.server.protocol.responses import FlatJsonSchema, FunctionChoice, FunctionTool, ResponsesRequest
from ernie45.server.protocol.structured import JsonSchema, JsonSchemaFormat, StructuredFields
from ernie45.server.protocol.tools import FunctionDefinition, Tool
from ernie45.server.responses.conversation import Turn, turns_of, with_instructions
from ernie45.server.responses.reply import ResponseReply, ResponseTask
from ernie45.server.responses.store import ResponseStore
from ernie45.server.structured import unchecked_grammars
from ernie45.server.translate import media_request, translate

_SAME = ("model", "stream", "temperature", "top_p", "seed", "parallel_tool_calls", "priority", "cache_salt", "user")
# Names in errors about the chat request -> those of the responses request.
_RENAMED = {
    r"response_format\.json_schema": "text.format",
    r"response_format": "text.format",
    r"\bmax_tokens\b": "max_output_tokens",
    r"reasoning_effort": "reasoning.effort",
    r"(tools\[\d+\])\.function": r"\1",
    r"tool_choice\.function": "tool_choice",
    r"\.tool_calls\[\d+\]\.function": "",
}


class _Chat(NamedTuple):
    """A chat request, and where the responses request has its messages. num_earlier: of a previous response."""

    request: ChatRequest
    turns: list[Turn]
    messages: list[Message]


def responses_endpoint(store: ResponseStore) -> Endpoint[ResponsesRequest]:
    """POST /v1/responses over a store."""
    return Endpoint(
        request=ResponsesRequest,
        translate=partial(translate_response, store=store),
        reply=ResponseReply,
        media=partial(_media, store=store),
        grammars=_grammars,
    )


def translate_response(request: ResponsesRequest, model: ServedModel, store: ResponseStore) -> Task:
    """ApiError for a bad request, with the names of its own fields."""
    chat = _chat(request, model, store)
    try:
        task = translate(chat.request, model)
    except (ApiError, Ernie45Error) as error:
        raise _renamed(error, chat) from error
    known = {item.name: getattr(task, item.name) for item in fields(Task)}
    return ResponseTask(
        **known,
        properties=_properties(request, task),
        summarize=request.reasoning is not None and request.reasoning.summary is not None,
        messages=chat.messages,
        store=store if request.store else None,
        owner=model.owner,
    )


def _media(request: ResponsesRequest, model: ServedModel, store: ResponseStore) -> MediaRequest | None:
    chat = _chat(request, model, store)
    try:
        wanted = media_request(chat.request, model)
        return wanted and replace(wanted, rename=partial(_rename, turns=chat.turns))
    except (ApiError, Ernie45Error) as error:
        raise _renamed(error, chat) from error


def _grammars(request: ResponsesRequest) -> list[Grammar]:
    said = StructuredFields.model_validate({"response_format": _response_format(request)})
    return unchecked_grammars(said, [_tool(tool).function for tool in request.tools or ()])


def _chat(request: ResponsesRequest, model: ServedModel, store: ResponseStore) -> _Chat:
    own = turns_of(request.input)
    earlier: list[Turn] = []
    if request.previous_response_id is not None:
        stored = store.get(request.previous_response_id, model.owner)
        if stored is None:
            rule = (
                f"previous_response_id ({request.previous_response_id[:80]!r}) is not of a response that is kept; send store "
                "with the first one, or the whole conversation as input"
            )
            raise ApiError(400, rule, param="previous_response_id", code="previous_response_not_found")
        earlier = [Turn(message, "previous_response_id") for message in stored.messages]
    turns = with_instructions(request.instructions, [*earlier, *own])
    chat = {name: getattr(request, name) for name in _SAME}
    chat |= {
        "messages": [turn.message for turn in turns],
        "max_completion_tokens": request.max_output_tokens,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "tools": [_tool(tool) for tool in request.tools] if request.tools is not None else None,
        "tool_choice": _tool_choice(request.tool_choice),
        "response_format": _response_format(request),
    }
    return _Chat(ChatRequest.model_validate(chat), turns, [turn.message for turn in (*earlier, *own)])


def _tool(tool: FunctionTool) -> Tool:
    known = tool.model_dump(exclude={"type"})
    return Tool(type="function", function=FunctionDefinition.model_validate(known))


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, FunctionChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _response_format(request: ResponsesRequest) -> Any:
    wanted = request.text.format if request.text else None
    if isinstance(wanted, FlatJsonSchema):
        schema = JsonSchema.model_validate(wanted.model_dump(by_alias=True, exclude={"type"}))
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return wanted


def _renamed(error: Exception, chat: _Chat) -> ApiError:
    """The error in the words of the request that was sent."""
    api_error = error if isinstance(error, ApiError) else from_user_error(error) if isinstance(error, Ernie45Error) else None
    assert api_error is not None, error
    return api_error.renamed(partial(_rename, turns=chat.turns))


def _rename(text: str, turns: Sequence[Turn]) -> str:
    def place(match: "re.Match[str]") -> str:
        index = int(match[1])
        return turns[index].field if index < len(turns) else match[0]

    text = re.sub(r"messages\[(\d+)\]", place, text)
    text = re.sub(r"\bmessages\b", "input", text)
    for pattern, name in _RENAMED.items():
        text = re.sub(pattern, name, text)
    return text


def _properties(request: ResponsesRequest, task: Task) -> dict[str, Any]:
    params = task.jobs[0].params
    text = request.text.model_dump(by_alias=True, exclude_none=True) if request.text else {}
    reasoning = request.reasoning.model_dump() if request.reasoning else {"effort": None, "summary": None}
    choice = request.tool_choice
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": reasoning,
        "store": bool(request.store),
        "temperature": params.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto",
        "tools": [tool.model_dump() for tool in request.tools or ()],
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": request.user,
    }
