"""Where a record says its pictures are: paths, addresses, bytes, members of an archive; and putting them into messages.

Knows nothing about what the pictures show, or how they are decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ernie45.config.errors import DataError
from ernie45.data.formats.files import Raw

_KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
_MARKS = {"image": "<image>", "video": "<video>"}


def media_part(kind: str, value: Any, raw: Raw, field: str) -> dict[str, Any]:
    """A part of a message's content with a picture.

    value: a path (relative ones begin at the data file's folder), an address (data:, file:, http:), a name inside the archive,
    or {"url"}, {"path"}, {"bytes"}. DataError if it is none of these or there is no such file.
    """
    source = value
    if isinstance(value, Mapping):
        source = next((value[key] for key in ("bytes", "url", "path") if value.get(key)), None)
    if isinstance(source, bytes | bytearray):
        return {"type": kind, kind: bytes(source)}
    if not isinstance(source, str) or not source:
        raise DataError(f"{raw.origin}: {field} must be a path or an address, is {type(value).__name__}; correct it")
    if source in raw.files:
        return {"type": kind, kind: raw.files[source]}
    scheme = source.partition(":")[0].lower()
    if scheme in ("data", "http", "https"):
        return {"type": f"{kind}_url", f"{kind}_url": {"url": source}}
    path = raw.folder / (source.removeprefix("file://") if scheme == "file" else source)
    if not _is_file(path):
        raise DataError(f"{raw.origin}: {field} ({path}) does not exist; add the file or correct the path")
    return {"type": kind, kind: path}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a zero byte
        return False


class MediaColumn:
    """Pictures that a record lists beside its messages: "images", "image", "videos", "video"."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._parts = {kind: list(self._read(kind)) for kind in _MARKS}
        self._used = dict.fromkeys(_MARKS, 0)

    def _read(self, kind: str) -> Iterator[dict[str, Any]]:
        for key in (kind, f"{kind}s"):
            value = self._raw.data.get(key)
            for number, item in enumerate(value if isinstance(value, list) else [] if value is None else [value]):
                yield media_part(kind, item, self._raw, f"{key}[{number}]" if isinstance(value, list) else key)

    def take(self, kind: str) -> dict[str, Any]:
        """The next one of a kind. DataError if there is none left."""
        number = self._used[kind]
        if number >= len(self._parts[kind]):
            raise DataError(
                f"{self._raw.origin} has more places for a {kind} than the {number} it lists in {kind}s; add the others"
            )
        self._used[kind] += 1
        return self._parts[kind][number]

    def rest(self) -> list[dict[str, Any]]:
        """Those that no message had a place for. DataError if it had places for some but not for all."""
        rest = [part for kind in _MARKS for part in self._parts[kind][self._used[kind] :]]
        if rest and any(self._used.values()):
            raise DataError(f"{self._raw.origin} lists {len(rest)} more pictures than its messages have places for; add places")
        return rest

    def fill(self, content: Any, field: str) -> Any:
        """A message's content with pictures in all its places: parts, and <image> in a text if the record lists images."""
        if isinstance(content, str):
            return self._split(content)
        if not isinstance(content, list):
            return content
        return [filled for number, part in enumerate(content) for filled in self._fill_part(part, f"{field}[{number}]")]

    def _fill_part(self, part: Any, field: str) -> Sequence[Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _KINDS:
            if part.get(kind) is None and "uuid" not in part:
                return [self.take(_KINDS[kind])]
            return [media_part(_KINDS[kind], part.get(kind), self._raw, f"{field}.{kind}")]
        if kind == "text" and isinstance(part.get("text"), str):
            split = self._split(part["text"])
            return split if isinstance(split, list) else [part]
        return [part]

    def _split(self, text: str) -> Any:
        for kind, mark in _MARKS.items():
            if self._parts[kind] and mark in text:
                parts: list[Any] = []
                for number, piece in enumerate(text.split(mark)):
                    parts += [self.take(kind)] if number else []
                    rest = self._split(piece) if piece else []
                    parts += rest if isinstance(rest, list) else [{"type": "text", "text": rest}]
                return parts
        return text
