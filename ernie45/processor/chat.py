"""From a rendered conversation to pieces: control tokens, plain text and media, with no way for text to pose as control.

Knows nothing about pixels or how templates are written.

A template puts the users' text and its own control tokens into one string. To tell them apart afterwards, a guard character
that occurs nowhere in the conversation is put behind every character of the users' text that a control token could begin
with (in effect, every "<"), and removed once the rendered string has been cut at control tokens. So a control token that the
user typed, also one split over two parts, stays text, while the template still sees ordinary strings that it may test, strip
or join. Replacing whole texts by opaque marks would break templates that look into them.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.processor.added_tokens import (
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    VIDEO_END,
    VIDEO_PLACEHOLDER,
    VIDEO_START,
)
from ernie45.processor.messages import MediaKind

# How templates mark a picture: the native ones by token, the remote code's by a string that is no token.
_REMOTE_IMAGE, _REMOTE_VIDEO = "<|image@placeholder|>", "<|video@placeholder|>"
MEDIA_STRINGS = (
    IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, _REMOTE_IMAGE, _REMOTE_VIDEO, IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END
)  # fmt: skip
_IMAGE = re.escape(IMAGE_START) + f"(?:{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(_REMOTE_IMAGE)})" + re.escape(IMAGE_END)
_VIDEO = (
    re.escape(VIDEO_START)
    + "(?:" + "|".join(map(re.escape, (VIDEO_PLACEHOLDER, _REMOTE_VIDEO, IMAGE_PLACEHOLDER))) + ")"
    + re.escape(VIDEO_END)
)  # fmt: skip
_MEDIA_RE = re.compile(f"({_IMAGE}|{_VIDEO})")
_ANY_MEDIA_STRING_RE = re.compile("|".join(map(re.escape, MEDIA_STRINGS)))
# Private-use characters, tried in order.
_GUARDS = [chr(code) for code in range(0xE000, 0xF900)]


class Piece(NamedTuple):
    """A stretch of a rendered conversation: template and user text (still guarded), or the place of one image or video."""

    text: str
    media: MediaKind | None


class Guard:
    """Marks the users' text before rendering, and takes the marks out again."""

    def __init__(self, values: Any, first_characters: frozenset[str]) -> None:
        """values: all that users wrote, nested. first_characters: those that control tokens begin with."""
        texts = list(_texts(values, ""))
        for field, text in texts:
            match = _ANY_MEDIA_STRING_RE.search(text)
            if match:
                raise RequestError(
                    f"{field} contains {match[0]!r}, which stands for a picture and is reserved; pass the picture as a part of "
                    "type image_url or video_url, or write the name without <| and |>"
                )
        used = set().union(*(text for _, text in texts))
        self.character = next((guard for guard in _GUARDS if guard not in used), "")
        if not self.character:
            raise RequestError("messages use every private-use character of Unicode; remove some")
        self._first = re.compile(f"[{re.escape(''.join(sorted(first_characters)))}]") if first_characters else None

    def mark(self, value: Any) -> Any:
        """The same nested value with its strings marked; names that templates look up (keys, roles, types) stay whole."""
        if isinstance(value, str):
            return self._first.sub(lambda match: match[0] + self.character, value) if self._first else value
        if isinstance(value, dict):
            return {self._mark_name(key): self._mark_item(key, item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def _mark_item(self, key: Any, item: Any) -> Any:
        return self._mark_name(item) if key in ("role", "type") else self.mark(item)

    def _mark_name(self, name: Any) -> Any:
        return name if isinstance(name, str) and name.isidentifier() else self.mark(name)

    def clean(self, text: str) -> str:
        """Take the marks out."""
        return text.replace(self.character, "")


def placed_media(rendered: str) -> list[MediaKind]:
    """What the placeholders in a rendered conversation stand for, in order."""
    return ["image" if mark.startswith(IMAGE_START) else "video" for mark in _MEDIA_RE.findall(rendered)]


def split_media(rendered: str, media_kinds: Sequence[MediaKind]) -> Iterator[Piece]:
    """Cut a rendered conversation at its images and videos. CheckpointError if the template lost, added or moved one."""
    pieces = _MEDIA_RE.split(rendered)
    found = placed_media(rendered)
    if found != list(media_kinds):
        raise CheckpointError(
            f"chat template placed {found} for messages with {list(media_kinds)}; correct chat_template.jinja or remove it to "
            "use the built-in one"
        )
    for index, piece in enumerate(pieces):
        if index % 2:
            yield Piece("", media_kinds[index // 2])
        elif piece:
            if _ANY_MEDIA_STRING_RE.search(piece):
                raise CheckpointError(
                    "chat template writes image tokens outside <|IMAGE_START|>...<|IMAGE_END|>; correct chat_template.jinja"
                )
            yield Piece(piece, None)


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"{field} key", key),) if isinstance(key, str) else ()
            yield from _texts(item, f"{field}.{key}" if field else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f"{field}[{index}]")
