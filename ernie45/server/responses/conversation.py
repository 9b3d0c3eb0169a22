"""From items to the messages of a chat.

Knows nothing about requests, or about how items come about.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ernie45.server.errors import ApiError
from ernie45.server.protocol import AssistantMessage, Message, UserMessage
from ernie45.server.protocol.parts import ImagePart, MediaUrl, SystemMessage, TextPart, ToolMessage
from ernie45.server.protocol.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    InputImage,
    Item,
    MessageItem,
    ReasoningItem,
)
from ernie45.server.protocol.tools import FunctionCall, ToolCall


class Turn(NamedTuple):
    """A message, and where the input has it."""

    message: Message
    field: str


def turns_of(items: str | Sequence[Item]) -> list[Turn]:
    """The messages of an input. Thought, answer and calls that follow each other are one message of the assistant's."""
    if isinstance(items, str):
        return [Turn(user_message(items), "input")]
    return list(_turns(items))


def user_message(content: Any) -> UserMessage:
    """What a user says, as text or parts."""
    return UserMessage(role="user", content=content, name=None)


def with_instructions(instructions: str | None, turns: Sequence[Turn]) -> list[Turn]:
    """The turns with one system message at most before them: the instructions and what the input begins with."""
    num_system = next((index for index, turn in enumerate(turns) if not isinstance(turn.message, SystemMessage)), len(turns))
    texts = [_text(turn.message) for turn in turns[:num_system]]
    texts = [text for text in (instructions, *texts) if text]
    if not texts:
        return list(turns[num_system:])
    field = turns[0].field if num_system and not instructions else "instructions"
    return [Turn(SystemMessage(role="system", content="\n".join(texts), name=None), field), *turns[num_system:]]


def _turns(items: Sequence[Item]) -> Iterator[Turn]:
    assistant: dict[str, Any] = {}
    field = ""
    for index, item in enumerate(items):
        if isinstance(item, FunctionCallItem | ReasoningItem) or (isinstance(item, MessageItem) and item.role == "assistant"):
            name = _name(item)
            if (name in assistant and name != "tool_calls") or (name != "tool_calls" and "tool_calls" in assistant):
                yield Turn(_assistant(assistant), field)
                assistant = {}
            field = field if assistant else f"input[{index}]"
            _add(assistant, item, f"input[{index}]")
            continue
        if assistant:
            yield Turn(_assistant(assistant), field)
            assistant = {}
        yield Turn(_message(item, f"input[{index}]"), f"input[{index}]")
    if assistant:
        yield Turn(_assistant(assistant), field)


def _name(item: Item) -> str:
    if isinstance(item, FunctionCallItem):
        return "tool_calls"
    return "reasoning_content" if isinstance(item, ReasoningItem) else "content"


def _add(assistant: dict[str, Any], item: Item, field: str) -> None:
    """Add an item to the fields of an assistant's message."""
    if isinstance(item, FunctionCallItem):
        call = ToolCall(
            type="function", id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments), index=None
        )
        assistant.setdefault("tool_calls", []).append(call)
    elif isinstance(item, ReasoningItem):
        assistant["reasoning_content"] = "\n".join(part.text for part in item.content or item.summary)
    elif isinstance(item, MessageItem):
        assistant["content"] = _texts(item, field)


def _assistant(fields: dict[str, Any]) -> AssistantMessage:
    return AssistantMessage.model_validate({"role": "assistant"} | fields)


def _message(item: Item, field: str) -> Message:
    if isinstance(item, FunctionOutputItem):
        output = item.output if isinstance(item.output, str) else "".join(part.text for part in item.output)
        return ToolMessage(role="tool", content=output, tool_call_id=item.call_id, name=None)
    assert isinstance(item, MessageItem), item
    if item.role != "user":
        return SystemMessage(role="system", content=_texts(item, field), name=None)
    if isinstance(item.content, str):
        return user_message(item.content)
    return user_message([_part(part) for part in item.content])


def _part(part: Any) -> TextPart | ImagePart:
    if isinstance(part, InputImage):
        return ImagePart(type="image_url", image_url=MediaUrl(url=part.image_url, detail=part.detail), uuid=None)
    return TextPart(type="text", text=part.text)


def _texts(item: MessageItem, field: str) -> str:
    """The content of a message that has no pictures."""
    if isinstance(item.content, str):
        return item.content
    for index, part in enumerate(item.content):
        if isinstance(part, InputImage):
            rule = f"{field}.content[{index}] is a picture in a message of role {item.role}; put it into a message of the user"
            raise ApiError(400, rule, param=f"{field}.content[{index}]", code="invalid_value")
    return "".join(part.text for part in item.content if not isinstance(part, InputImage))


def _text(message: Message) -> str:
    return message.content if isinstance(message.content, str) else ""
