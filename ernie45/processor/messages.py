"""Checks a conversation in OpenAI's form and brings it into the one form that chat templates get.

Knows nothing about templates, token ids or how media are loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ernie45.config.errors import RequestError
from ernie45.processor.fetch import shorten
from ernie45.processor.source import is_url

MediaKind = Literal["image", "video"]
MAX_UUID_CHARACTERS = 256
# Lists and objects inside each other, of JSON that strangers send: templates and encoders walk them by recursion.
MAX_DEPTH = 128
ROLES = ("system", "developer", "user", "assistant", "tool")
_PARTS: dict[str, MediaKind | None] = {
    "text": None,
    "image_url": "image",
    "image": "image",
    "video_url": "video",
    "video": "video",
}
_MESSAGE_KEYS = frozenset(("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id", "refusal"))


class MediaSource(NamedTuple):
    """One image or video of a conversation, not loaded yet.

    field: where it stands, for error messages. uuid: the client's name for it; with one, source may be None.
    """

    kind: MediaKind
    source: Any
    field: str
    uuid: str | None = None


@dataclass(frozen=True)
class Conversation:
    """messages: what a template gets, plain dicts and lists of its own. media: images and videos in order of appearance."""

    messages: list[dict[str, Any]]
    media: list[MediaSource]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Check and normalise. RequestError names the message and the part.

    Content that is a string stays one. Parts of type image and image_url become image_url, video and video_url become
    video_url, without their data. A thought written inside an assistant's content (<think>...</think>answer) moves to
    reasoning_content. Arguments of tool calls become objects. The role developer is read as system.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages must be a list of at least one message; add {'role': 'user', 'content': '...'}")
    media: list[MediaSource] = []
    return Conversation([_message(f"messages[{i}]", message, media) for i, message in enumerate(messages)], media)


def is_too_deep(value: Any) -> bool:
    """Whether JSON has more than MAX_DEPTH lists and objects inside each other. Itself without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [item for inner in containers for item in (inner.values() if isinstance(inner, dict) else inner)]
    return any(isinstance(item, dict | list) for item in level)


def _message(field: str, message: Mapping[str, Any], media: list[MediaSource]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{field} must be an object with role and content, is {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{field}.role ({role!r}) must be one of {', '.join(ROLES)}")
    unknown = sorted(key for key in message if key not in _MESSAGE_KEYS)
    if unknown:
        raise RequestError(f"{field} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(_MESSAGE_KEYS))}")
    content = _content(f"{field}.content", role, message.get("content"), media)
    if role == "assistant":
        return _assistant(field, content, message)
    if content is None:
        raise RequestError(f"{field}.content must be a text or a list of parts; only an assistant's may be missing")
    return {"role": "system" if role == "developer" else role, "content": content}


def _assistant(field: str, content: Any, message: Mapping[str, Any]) -> dict[str, Any]:
    thoughts = message.get("reasoning_content")
    if thoughts is not None and not isinstance(thoughts, str):
        raise RequestError(f"{field}.reasoning_content must be a text, is {type(thoughts).__name__}")
    if isinstance(content, str) and "</think>" in content:
        inline, _, content = content.partition("</think>")
        thoughts = thoughts or inline.strip().removeprefix("<think>")
        content = content.lstrip("\n")
    result: dict[str, Any] = {"role": "assistant", "content": content or ""}
    if thoughts and thoughts.strip():
        result["reasoning_content"] = thoughts.strip()
    calls = message.get("tool_calls")
    if calls and (not isinstance(calls, Sequence) or isinstance(calls, str)):
        raise RequestError(f"{field}.tool_calls must be a list of calls, is {type(calls).__name__}")
    if calls:
        result["tool_calls"] = [_tool_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return result


def _tool_call(field: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{field} must be {{'type': 'function', 'function': {{'name': ..., 'arguments': ...}}}}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field}.function.arguments must be a JSON object as text: {error}") from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{field}.function.arguments must be a JSON object, is {type(arguments).__name__}")
    if is_too_deep(arguments):
        raise RequestError(f"{field}.function.arguments must have at most {MAX_DEPTH} levels; flatten them")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _content(field: str, role: str, content: Any, media: list[MediaSource]) -> Any:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"{field} must be a text or a list of parts, is {type(content).__name__}")
    return [_part(f"{field}[{i}]", role, part, media) for i, part in enumerate(content)]


def _part(field: str, role: str, part: Any, media: list[MediaSource]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise RequestError(f"{field}.type ({kind!r}) must be one of {', '.join(_PARTS)}")
    media_kind = _PARTS[kind]
    unknown = sorted(set(part) - {"type", kind} - ({"uuid"} if media_kind else set()))
    if unknown:
        raise RequestError(f"{field} has the unknown key {unknown[0]!r}; a part of type {kind} has 'type' and {kind!r}")
    value = part.get(kind)
    if media_kind is None:
        if not isinstance(value, str):
            raise RequestError(f"{field}.text must be a text, is {type(value).__name__}")
        return {"type": "text", "text": value}
    if role in ("system", "developer", "assistant"):
        raise RequestError(f"{field} is of type {kind} in a message of role {role}; put images and videos into user messages")
    media.append(_source(f"{field}.{kind}", kind, media_kind, value, _uuid(field, part)))
    return {"type": f"{media_kind}_url", f"{media_kind}_url": {"url": ""}}


def _source(field: str, kind: str, media_kind: MediaKind, value: Any, uuid: str | None) -> MediaSource:
    if value is None and uuid is not None:
        return MediaSource(media_kind, None, field, uuid)
    source = _url(field, value) if kind.endswith("_url") else _address(field, value)
    if source is None:
        raise RequestError(f"{field} must be a picture, a path or bytes, is missing")
    return MediaSource(media_kind, source, field, uuid)


def _uuid(field: str, part: Mapping[str, Any]) -> str | None:
    uuid = part.get("uuid")
    if uuid is not None and (not isinstance(uuid, str) or not 0 < len(uuid) <= MAX_UUID_CHARACTERS):
        raise RequestError(f"{field}.uuid ({shorten(uuid)!r}) must be a text of 1 to {MAX_UUID_CHARACTERS} characters")
    return uuid


def _url(field: str, value: Any) -> str:
    """A string, or OpenAI's {"url": ..., "detail": "auto"}; other details would ask for a resolution we do not choose."""
    url = value
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"url", "detail"})
        if unknown:
            raise RequestError(f"{field} has the unknown key {unknown[0]!r}; known are url and detail")
        if value.get("detail") not in (None, "auto"):
            raise RequestError(f"{field}.detail ({value['detail']!r}) must be 'auto': the resolution follows the picture")
        url = value.get("url")
    if not isinstance(url, str) or not url:
        raise RequestError(f"{field}.url must be a text: http(s)://... or data:...;base64,...")
    return _address(field, url)


def _address(field: str, source: Any) -> Any:
    """Texts may come from strangers, so a text is an address and never a path; a path is a `pathlib.Path`."""
    if isinstance(source, str) and not is_url(source):
        raise RequestError(
            f"{field} ({shorten(source)}) must be an address (http:, https:, data: or file:); in Python pass a path as "
            "pathlib.Path in a part of type image or video"
        )
    return source
