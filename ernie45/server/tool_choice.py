"""What a chat request says about tools: what the model is shown, which calls are looked for, which ones it must make.

Knows nothing about how calls are written or read.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ernie45.config.errors import RequestError
from ernie45.config.sampling import Grammar
from ernie45.processor import Processor
from ernie45.server.errors import ApiError
from ernie45.server.protocol import AssistantMessage, ChatRequest, Message
from ernie45.server.protocol.parts import ToolMessage
from ernie45.server.protocol.tools import FunctionDefinition, NamedToolChoice, ToolFields
from ernie45.server.structured import CallRule, answer_form, check_functions, grammar
from ernie45.server.tools import ToolFormat, ToolUse


def tools_of(request: ToolFields) -> list[dict[str, Any]] | None:
    """The tools as a chat template gets them. The model is not shown what it may not call."""
    if not request.tools or request.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True) for tool in request.tools]


def in_order_of_calls(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the results of each turn's calls in the order of these: templates show no ids."""
    ordered: list[Message] = []
    place: dict[str | None, int] = {}
    for is_result, group in groupby(messages, lambda message: isinstance(message, ToolMessage)):
        turn = list(group)
        if is_result:  # those of unknown calls keep their order behind the others
            turn.sort(key=lambda message: place.get(getattr(message, "tool_call_id", None), len(place)))
        else:
            calls = turn[-1].tool_calls if isinstance(turn[-1], AssistantMessage) else None
            place = {call.id: index for index, call in enumerate(calls or ()) if call.id}
        ordered += turn
    return ordered


def tool_use(request: ChatRequest, form: ToolFormat) -> ToolUse | None:
    """How calls are found in the answer. ApiError (400) for tools that cannot be, or a choice that is not among them."""
    functions = _allowed(request)
    if not functions:
        return None
    if request.completion_token_ids:
        raise RequestError("tools cannot go with completion_token_ids, as the answer may go on inside a call; leave one out")
    return ToolUse(form=form, names=tuple(function.name for function in functions), single=request.parallel_tool_calls is False)


def answer_grammar(request: ChatRequest, form: ToolFormat, processor: Processor, thinking: bool) -> Grammar | None:
    """What the answer must match: the calls that it must have, else the form that is asked for, or calls that it may have."""
    wanted = answer_form(request)
    functions = _allowed(request)
    must_call = bool(functions) and request.tool_choice not in (None, "auto")
    if wanted is None and not must_call:
        return None
    if request.completion_token_ids:
        what = "tool_choice" if wanted is None else wanted.field
        raise RequestError(f"{what} cannot go with completion_token_ids: it is about the whole answer; leave one out")
    calls = None
    if functions:
        control_tokens = frozenset(processor.tokenizer.control_ids)
        calls = CallRule(functions, form, control_tokens, parallel=request.parallel_tool_calls is not False)
    # A thought without an end token of its own could not be told from the answer.
    after = processor.think_end_id if thinking else None
    return grammar(None if must_call else wanted, calls, after)


def _allowed(request: ChatRequest) -> list[FunctionDefinition]:
    """The functions that the answer may call."""
    tools, choice = request.tools or [], request.tool_choice
    functions = [tool.function for tool in tools]
    check_functions(functions, [f"tools[{index}].function" for index in range(len(functions))])
    if choice == "none":
        return []
    if not tools and choice not in (None, "auto"):
        rule = "tool_choice asks for a call, but there are no tools; add some, or leave tool_choice out"
        raise ApiError(400, rule, param="tool_choice", code="invalid_value")
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        functions = [function for function in functions if function.name == name]
        if not functions:
            rule = f"tool_choice.function.name ({name!r}) must be one of the tools; add it, or name another"
            raise ApiError(400, rule, param="tool_choice.function.name", code="invalid_value")
    return functions
