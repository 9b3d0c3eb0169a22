"""Several files of records as one, with access by number.

Knows nothing about token ids.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.formats.archives import open_records
from ernie45.data.formats.files import RecordFile
from ernie45.data.formats.forms import AUTO, check_form, convert
from ernie45.data.records import Document, Kind, Pair, Prompt, Record

_PART = re.compile(r"[-_](\d{5,}|\d+[-_]of[-_]\d+)$")  # four digits may be a year


class Found(NamedTuple):
    """A record and the name of its form."""

    form: str
    record: Kind


class Dataset:
    """Records of files, in the order of the files. Can be pickled, for worker processes."""

    def __init__(self, paths: Sequence[Path | str], want: tuple[type, ...] = (), form: str = AUTO) -> None:
        """want: kinds of record that are of use (`Record`, `Pair`, ...), the first that a form can be read as is taken; ():
        any. form: of all records; "auto": each by its keys. A record's source is its file's `source_name`.

        DataError or ConfigError for a file that cannot be read at all; a bad record is found when it is read.
        """
        if not paths:
            raise DataError("data files () must be at least one; name one with --data")
        self.paths = [Path(path) for path in paths]
        self._want, self._form = want, check_form(form)
        self._files: list[RecordFile] = [open_records(path) for path in self.paths]
        self._borders = np.cumsum([0, *map(len, self._files)])

    def __len__(self) -> int:
        return int(self._borders[-1])

    def __iter__(self) -> Iterator[Kind]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Kind:
        """DataError names the place of a bad record and what is wrong."""
        return self.find(index).record

    def find(self, index: int) -> Found:
        """The record with the name of its form."""
        file, place = self._place(index)
        form, record = convert(file.read(place), self._want, self._form)
        return Found(form, _with_source(record, source_name(file.path)))

    def origin(self, index: int) -> str:
        """file:line of a record, for messages."""
        file, place = self._place(index)
        return file.origin(place)

    def source_of(self, index: int) -> str:
        """The name of the part of a mixture that a record belongs to."""
        return source_name(self._place(index)[0].path)

    @property
    def sources(self) -> dict[str, np.ndarray]:
        """The numbers of the records of each source, in order."""
        found: dict[str, list[np.ndarray]] = {}
        for number, path in enumerate(self.paths):
            found.setdefault(source_name(path), []).append(np.arange(self._borders[number], self._borders[number + 1]))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many records each file has, bad ones included."""
        return {str(path): len(file) for path, file in zip(self.paths, self._files, strict=True)}

    @property
    def fingerprint(self) -> list[list[object]]:
        """Changes when a file does: name, size and time of each."""
        return [[str(path), (status := path.stat()).st_size, status.st_mtime_ns] for path in self.paths]

    def _place(self, index: int) -> tuple[RecordFile, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._borders, index, side="right")) - 1
        return self._files[number], index - int(self._borders[number])


def source_name(path: Path) -> str:
    """web.part1.jsonl.gz -> web; web-00003.tar, web-00003-of-00010.parquet -> web: numbered parts of one whole"""
    name = path.name.partition(".")[0]
    return _PART.sub("", name) or name


def _with_source(record: Kind, source: str) -> Kind:
    assert isinstance(record, Record | Pair | Prompt | Document), type(record)
    return replace(record, source=source)
