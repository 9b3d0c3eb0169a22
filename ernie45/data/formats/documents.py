"""Texts to be learnt as a whole, with or without pictures in them.

Knows nothing about files or token ids.
"""

from typing import Any

from ernie45.config.errors import DataError
from ernie45.data.formats.files import Raw
from ernie45.data.formats.media import MediaColumn
from ernie45.data.records import Document


def document(raw: Raw) -> Document:
    """{"text": ...}, with "images" that stand at <image> in it or before it; or {"content": [parts as in a message]}."""
    media = MediaColumn(raw)
    content = raw.data["content"] if isinstance(raw.data.get("content"), list) else raw.data.get("text")
    if not isinstance(content, str | list):
        raise DataError(f"{raw.origin}: text must be a text, is {type(content).__name__}; correct it")
    filled = media.fill(content, "content")
    parts: list[Any] = [*media.rest(), *([{"type": "text", "text": filled}] if isinstance(filled, str) else filled)]
    parts = [part for part in parts if not (part.get("type") == "text" and part.get("text") == "")]
    for number, part in enumerate(parts):
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            raise DataError(f"{raw.origin}: content[{number}].text must be a text; correct it")
        if part.get("type") not in ("text", "image", "image_url", "video", "video_url"):
            raise DataError(f"{raw.origin}: content[{number}].type ({part.get('type')!r}) must be text, image or video")
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise DataError(f"{raw.origin} has no text; remove the record")
    return Document(parts=tuple(parts), origin=raw.origin)
