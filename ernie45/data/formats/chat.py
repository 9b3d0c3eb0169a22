"""Conversations: OpenAI's messages, prompt and completion, Alpaca's instruction and output.

Knows nothing about files or templates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ernie45.config.errors import DataError, RequestError
from ernie45.data.formats.files import Raw
from ernie45.data.formats.media import MediaColumn
from ernie45.data.records import Messages, Record
from ernie45.processor.messages import read_messages

_LOSS_KEYS = ("loss", "weight")  # ours, and that of OpenAI's fine-tuning files
_PARTS = ("text", "image", "image_url", "video", "video_url")


def conversation(raw: Raw, messages: Any, field: str = "messages", media: MediaColumn | None = None) -> Messages:
    """Checked messages with their pictures in place. DataError names what is wrong. Loss marks are taken out.

    media: pictures that the record lists beside; what no message has a place for goes before the first question.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{raw.origin}: {field} must be a list of at least one message; add one")
    media = MediaColumn(raw) if media is None else media
    result: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"{raw.origin}: {field}[{number}] must be an object with role and content; correct it")
        message = {key: value for key, value in message.items() if key not in _LOSS_KEYS and value is not None}
        if "content" in message:
            content = _tool_result(message["content"]) if message.get("role") == "tool" else message["content"]
            message["content"] = media.fill(content, f"{field}[{number}].content")
        result.append(message)
    _prepend(result, media.rest(), raw)
    checked(result, raw)
    return tuple(result)


def checked(messages: Sequence[Mapping[str, Any]], raw: Raw) -> None:
    """DataError for a conversation that no template could get."""
    try:
        read_messages(messages)
    except RequestError as error:
        raise DataError(f"{raw.origin}: {error}") from error


def _tool_result(content: Any) -> Any:
    """Results of tools as text: some files have them as JSON."""
    if isinstance(content, str) or (isinstance(content, list) and all(_is_part(part) for part in content)):
        return content
    return json.dumps(content, ensure_ascii=False)


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _PARTS


def _prepend(messages: list[dict[str, Any]], parts: list[dict[str, Any]], raw: Raw) -> None:
    if not parts:
        return
    first = next((message for message in messages if message.get("role") == "user"), None)
    if first is None:
        raise DataError(f"{raw.origin} lists pictures but has no message of a user to put them in; add one")
    content = first.get("content") or []
    first["content"] = [*parts, *([{"type": "text", "text": content}] if isinstance(content, str) else content)]


def tools_of(raw: Raw) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of tools: a list, or one as text."""
    tools = raw.data.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"{raw.origin}: tools is not JSON: {error}; correct it") from error
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{raw.origin}: tools must be a list of objects; correct it")
    return tuple(tools)


def thinking_of(raw: Raw) -> bool | None:
    """Which answer form the record asks for, if it says so."""
    for key in ("thinking", "enable_thinking"):
        value = raw.data.get(key)
        if value is not None:
            if not isinstance(value, bool):
                raise DataError(f"{raw.origin}: {key} ({value!r}) must be true or false; correct it or leave it out")
            return value
    return None


def trained_of(raw: Raw, messages: Any) -> tuple[bool, ...] | None:
    """Which assistant messages carry loss, by their own marks or by the record's `label`; None if nothing is said."""
    answers = [message for message in messages if isinstance(message, Mapping) and message.get("role") == "assistant"]
    labels = raw.data.get("label")
    if isinstance(labels, list):  # ERNIEKit's; a single number is some other program's
        if len(labels) != len(answers):
            raise DataError(f"{raw.origin}: label ({labels!r}) must have one number for each of {len(answers)} answers")
        return tuple(_mark(raw, "label", value) for value in labels)
    marks = [next((answer[key] for key in _LOSS_KEYS if answer.get(key) is not None), None) for answer in answers]
    if all(mark is None for mark in marks):
        return None
    return tuple(mark is None or _mark(raw, "loss", mark) for mark in marks)


def _mark(raw: Raw, name: str, value: Any) -> bool:
    if value not in (0, 1):
        raise DataError(f"{raw.origin}: {name} ({value!r}) must be 0 or 1, false or true; correct it")
    return bool(value)


def openai(raw: Raw) -> Record:
    """{"messages": [...], "tools"?, "thinking"?, "images"?}; an answer is left out of the loss by "loss": false."""
    messages = conversation(raw, raw.data["messages"])
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{raw.origin} ends with a message of role {messages[-1]['role']}; add the assistant's answer to learn")
    return Record(
        messages=messages,
        trained=trained_of(raw, raw.data["messages"]),
        thinking=thinking_of(raw),
        tools=tools_of(raw),
        origin=raw.origin,
    )


def completion(raw: Raw) -> Record:
    """{"prompt": text or messages, "completion": text or messages}"""
    messages = [*as_messages(raw, "prompt", "user"), *as_messages(raw, "completion", "assistant")]
    return openai(raw._replace(data={**raw.data, "messages": messages}))


def alpaca(raw: Raw) -> Record:
    """{"instruction", "input"?, "output", "history"?: [[question, answer], ...], "system"?}"""
    data = raw.data
    question = "\n".join(text_of(raw, key) for key in ("instruction", "input") if data.get(key))
    history = data.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError(f"{raw.origin}: history must be a list of [question, answer]; correct it")
    messages = [{"role": "system", "content": text_of(raw, "system")}] if data.get("system") else []
    for asked, answered in [*history, [question, text_of(raw, "output")]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return openai(raw._replace(data={**data, "messages": messages}))


def as_messages(raw: Raw, key: str, role: str) -> list[Any]:
    """A field that is a text, of this role, or already messages."""
    value = raw.data.get(key)
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list) and value:
        return list(value)
    raise DataError(f"{raw.origin}: {key} must be a text or a list of messages, and not empty; correct it")


def text_of(raw: Raw, key: str) -> str:
    """A field that must be a text with something in it."""
    value = raw.data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{raw.origin}: {key} must be a text, and not empty; correct it")
    return value
