"""Files of records with access by number: JSON lines, JSON arrays, CSV and plain text. None is ever whole in memory.

Knows nothing about what a record means. Parquet and tar are in `tables` and `archives`.

A file is indexed once, in one pass: where each record begins and ends. What is kept of it can be pickled, so that worker
processes need not index again; each process opens the file for itself.
"""

import csv
import io
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ernie45.config.errors import DataError

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 24
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_CSV_FIELD_BYTES = 1 << 30
_BLANK_BYTES = 64  # a longer line is no empty one


class Raw(NamedTuple):
    """One record as its file has it.

    data: usually an object. origin: for messages. folder: where relative paths begin. files: what lies beside it in an archive,
    by name and by extension.
    """

    data: Any
    origin: str
    folder: Path
    files: Mapping[str, bytes] = {}


class RecordFile(Protocol):
    """A file of records. read: DataError for a record that cannot be decoded."""

    path: Path

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str: ...

    def read(self, index: int) -> Raw: ...


class Cuts(NamedTuple):
    """Where records begin and end in a file, in bytes, and on which line they begin; int64 each."""

    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(cls, starts: list[int], ends: list[int], lines: list[int]) -> "Cuts":
        """From lists."""
        return cls(*(np.array(column, dtype=np.int64) for column in (starts, ends, lines)))


class Spans:
    """A file whose records are stretches of its bytes."""

    def __init__(self, path: Path, cuts: Cuts, content: Path | None = None) -> None:
        """content: the file that is read, where it is not the one that messages name."""
        self.path, self._cuts = path, cuts
        self._content = content or path
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._cuts.starts)

    def origin(self, index: int) -> str:
        """file:line"""
        return f"{self.path}:{self._cuts.lines[index]}"

    def bytes_of(self, index: int) -> bytes:
        """The record's own bytes."""
        start, end = int(self._cuts.starts[index]), int(self._cuts.ends[index])
        if self._file is None:
            self._file = os.open(self._content, os.O_RDONLY)
        return os.pread(self._file, end - start, start)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]


class JsonFile(Spans):
    """JSON lines, or one JSON array, whatever its name ends in: the first character tells."""

    @classmethod
    def index(cls, path: Path, content: Path | None = None) -> "JsonFile":
        """One pass over the file. DataError if it is empty."""
        with mapped(content or path, path) as view:
            begin = len(_BOM) if view[:3] == _BOM else 0
            first = re.compile(rb"\S").search(view, begin)
            newlines = _newlines(view)
            if first and first[0] == b"[":
                spans = list(_array_spans(view, first.end()))
                cuts = Cuts.of([start for start, _ in spans], [end for _, end in spans], [])
                return cls(path, cuts._replace(lines=np.searchsorted(newlines, cuts.starts) + 1), content)
            starts = np.concatenate([[begin], newlines + 1])
            ends = np.concatenate([newlines, [len(view)]])
            kept = np.ones(len(starts), dtype=bool)
            for short in np.flatnonzero(ends - starts < _BLANK_BYTES).tolist():
                kept[short] = not _is_blank(view, int(starts[short]), int(ends[short]))
        return cls(path, Cuts(starts[kept], ends[kept], np.flatnonzero(kept) + 1), content)

    def read(self, index: int) -> Raw:
        """The decoded record."""
        return Raw(parse_json(self.bytes_of(index), self.origin(index)), self.origin(index), self.path.parent)


class CsvFile(Spans):
    """Rows of a table with its header in the first line; fields may hold line ends. Separated by comma, semicolon or tab."""

    def __init__(self, path: Path, cuts: Cuts, delimiter: str, content: Path | None = None) -> None:
        super().__init__(path, Cuts(*(column[1:] for column in cuts)), content)
        self._delimiter = delimiter
        header = Spans(path, cuts, content).bytes_of(0).removeprefix(_BOM)
        self._header = [name.strip() for name in self._row(header, f"{path}:1")]

    @classmethod
    def index(cls, path: Path, content: Path | None = None) -> "CsvFile":
        """One pass over the file. DataError if it is empty or no table."""
        csv.field_size_limit(_CSV_FIELD_BYTES)
        position, starts, ends, lines = 0, [], [], []
        with open(content or path, "rb") as file:
            first = file.readline()
            delimiter = max(",;\t", key=lambda mark: first.count(mark.encode()))
            file.seek(0)
            consumed = 0

            def texts() -> Iterator[str]:
                nonlocal consumed
                for line in file:
                    consumed += len(line)
                    yield line.decode("latin-1")  # borders of fields are ASCII; the text itself is decoded on reading

            reader, line = csv.reader(texts(), delimiter=delimiter), 1
            try:
                for row in reader:
                    if row:
                        starts.append(position)
                        ends.append(consumed)
                        lines.append(line)
                    position, line = consumed, reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{path}:{line} is no row of a table: {error}; correct the file") from error
        if not starts:
            raise DataError(f"data file ({path}) is empty; it needs a line of column names and a row for each record")
        return cls(path, Cuts.of(starts, ends, lines), delimiter, content)

    def read(self, index: int) -> Raw:
        """A row as an object of texts by column; empty fields are left out."""
        origin = self.origin(index)
        row = self._row(self.bytes_of(index), origin)
        if len(row) != len(self._header):
            raise DataError(f"{origin} has {len(row)} fields, but the header has {len(self._header)}; correct the row")
        return Raw({name: text for name, text in zip(self._header, row, strict=True) if text}, origin, self.path.parent)

    def _row(self, data: bytes, origin: str) -> list[str]:
        csv.field_size_limit(_CSV_FIELD_BYTES)
        return next(csv.reader(io.StringIO(_decode(data, origin), newline=""), delimiter=self._delimiter))


class TextFile:
    """A plain text: one document."""

    def __init__(self, path: Path, content: Path | None = None) -> None:
        self.path, self._content = path, content or path

    def __len__(self) -> int:
        return 1

    def origin(self, index: int) -> str:
        """The file's name."""
        return str(self.path)

    def read(self, index: int) -> Raw:
        """The text under the key "text"."""
        return Raw({"text": _decode(self._content.read_bytes(), str(self.path))}, str(self.path), self.path.parent)


def parse_json(data: bytes, origin: str) -> Any:
    """DataError for what is no JSON, with the column."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
            raise DataError(f"{origin} is cut off after {len(data)} bytes; write the record again or remove it") from error
        raise DataError(f"{origin} is not JSON: {error.msg} at character {error.pos + 1}; correct it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{origin} has too many lists and objects inside each other; flatten it") from error


def mapped(path: Path, name: Path) -> mmap.mmap:
    """The file's bytes, not read yet. DataError if it is empty. name: for messages."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"data file ({name}) is empty; it needs at least one record")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _newlines(view: mmap.mmap) -> np.ndarray:
    found = [
        np.flatnonzero(np.frombuffer(view[start : start + _BLOCK], dtype=np.uint8) == 10) + start
        for start in range(0, len(view), _BLOCK)
    ]
    return np.concatenate(found).astype(np.int64)


def _is_blank(view: mmap.mmap, start: int, end: int) -> bool:
    return end - start < _BLANK_BYTES and not view[start:end].strip()


def _array_spans(view: mmap.mmap, begin: int) -> Iterator[tuple[int, int]]:
    """The elements of the array that opens right before `begin`; what is left of a cut-off one is an element, too."""
    depth = 1
    for match in _STRUCTURE.finditer(view, begin):
        mark = match[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
        if (mark == b"," and depth == 1) or depth == 0:
            if mark == b"," or not _is_blank(view, begin, match.start()):
                yield _stripped(view, begin, match.start())
            begin = match.end()
        if depth == 0:
            break
    if not _is_blank(view, begin, len(view)):
        yield _stripped(view, begin, len(view))


def _stripped(view: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    first = re.compile(rb"\S").search(view, start, end)
    return (first.start() if first else start, end)


def _decode(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
