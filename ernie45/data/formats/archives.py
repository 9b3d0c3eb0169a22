"""Files of records that are read through a library: Parquet tables and WebDataset tars; and what is compressed.

Knows nothing about what a record means.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ernie45.config.errors import ConfigError, DataError, StorageError
from ernie45.data.formats.files import CsvFile, JsonFile, Raw, RecordFile, TextFile, parse_json

_TABLES = {".jsonl": JsonFile.index, ".json": JsonFile.index, ".csv": CsvFile.index, ".tsv": CsvFile.index}
SUFFIXES = (*_TABLES, ".txt", ".parquet", ".tar", "any of them but .parquet with .gz")


def open_records(path: Path) -> RecordFile:
    """The records of a file, by what its name ends in. DataError or ConfigError if there are none to be had."""
    if path.is_dir():
        raise DataError(f"data file ({path}) is a folder; name the files in it")
    if not path.is_file():
        raise DataError(f"data file ({path}) does not exist; check the path")
    name = path.name.lower().removesuffix(".gz")
    content = unpacked(path) if path.name.lower().endswith(".gz") else None
    suffix = Path(name).suffix
    if suffix in _TABLES:
        file: RecordFile = _TABLES[suffix](path, content)
    elif suffix == ".txt":
        file = TextFile(path, content)
    elif suffix == ".tar":
        file = TarFile.index(path, content)
    elif suffix == ".parquet" and content is None:
        file = ParquetFile.index(path)
    else:
        raise DataError(f"data file ({path}) must end in {', '.join(SUFFIXES)}; convert or rename it")
    if not len(file):
        raise DataError(f"data file ({path}) is empty; it needs at least one record")
    return file


def unpacked(path: Path) -> Path:
    """What a .gz file holds, as a file that can be read at any place; kept in the cache folder for the next time.

    DataError if it is damaged, StorageError if there is no room.
    """
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ernie45" / "unpacked"
    target = folder / key
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
            try:
                with gzip.open(path, "rb") as source:
                    shutil.copyfileobj(source, out, 1 << 22)
                os.replace(out.name, target)
            except BaseException:
                os.unlink(out.name)
                raise
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"data file ({path}) is a damaged or cut-off gzip: {error}; fetch it again") from error
    except OSError as error:
        raise StorageError(f"data file ({path}) cannot be unpacked into {folder}: {error}; unpack it by hand") from error
    return target


class ParquetFile:
    """A table; columns may hold lists, structs and bytes. One group of rows at a time is in memory."""

    def __init__(self, path: Path, borders: list[int]) -> None:
        self.path, self._borders = path, borders
        self._file: Any = None
        self._group: tuple[int, Any] = (-1, None)

    @classmethod
    def index(cls, path: Path) -> "ParquetFile":
        """ConfigError if pyarrow is not installed, DataError if the file is damaged."""
        if find_spec("pyarrow") is None:
            raise ConfigError(f"pyarrow (not installed) is needed to read {path}; pip install 'ernie45[train]'")
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile as Table

        try:
            meta = Table(path).metadata
        except (ArrowException, OSError) as error:
            raise DataError(f"data file ({path}) is no Parquet or damaged: {error}; fetch it again") from error
        borders = [0]
        for group in range(meta.num_row_groups):
            borders.append(borders[-1] + meta.row_group(group).num_rows)
        return cls(path, borders)

    def __len__(self) -> int:
        return self._borders[-1]

    def origin(self, index: int) -> str:
        """file:row N, from 1"""
        return f"{self.path}:row {index + 1}"

    def read(self, index: int) -> Raw:
        """A row as an object; empty cells are left out."""
        from pyarrow.parquet import ParquetFile as Table

        group = next(number for number, end in enumerate(self._borders[1:]) if index < end)
        if self._group[0] != group:
            self._file = self._file or Table(self.path)
            self._group = (group, self._file.read_row_group(group))
        row = self._group[1].slice(index - self._borders[group], 1).to_pylist()[0]
        return Raw(_without_nulls(row), self.origin(index), self.path.parent)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_group": (-1, None)}


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object of a column all keys that any of them has."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    extension: str
    start: int
    size: int


class TarFile:
    """WebDataset: files whose names are equal up to the first dot of the last part are one record.

    KEY.json is the record; its pictures are named by it, or are those that lie beside it. KEY.txt beside pictures is what they
    show, a document.
    """

    def __init__(self, path: Path, samples: list[tuple[str, list[Member]]], content: Path | None = None) -> None:
        self.path, self._samples, self._content = path, samples, content or path

    @classmethod
    def index(cls, path: Path, content: Path | None = None) -> "TarFile":
        """One pass over the headers. DataError if the file is no tar or is cut off."""
        samples: dict[str, list[Member]] = {}
        try:
            with tarfile.open(content or path, "r:") as archive:
                for item in archive:
                    if not item.isreg():
                        continue
                    folder, _, name = item.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    member = Member(name, extension.lower(), item.offset_data, item.size)
                    samples.setdefault(f"{folder}/{stem}" if folder else stem, []).append(member)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"data file ({path}) is no tar or is cut off: {error}; fetch it again") from error
        return cls(path, list(samples.items()), content)

    def __len__(self) -> int:
        return len(self._samples)

    def origin(self, index: int) -> str:
        """file:key"""
        return f"{self.path}:{self._samples[index][0]}"

    def read(self, index: int) -> Raw:
        """The record with the files beside it."""
        _, members = self._samples[index]
        origin, files = self.origin(index), {}
        with open(self._content, "rb") as file:
            for member in members:
                data = os.pread(file.fileno(), member.size, member.start)
                if len(data) < member.size:
                    raise DataError(f"{origin}: {member.name} is cut off; fetch the archive again")
                files[member.name] = files[member.extension] = data
        beside = [member.name for member in members if member.extension not in ("json", "txt", "cls")]
        if "json" in files:
            data = parse_json(files["json"], f"{origin}.json")
            if isinstance(data, dict) and beside and not _names_media(data):
                data = {**data, "images": beside}
        elif "txt" in files:
            data = {"images": beside, "text": files["txt"].decode("utf-8", "replace")}
        else:
            raise DataError(f"{origin} has neither .json nor .txt; add one that says what is to be learnt")
        return Raw(data, origin, self.path.parent, files)


def _names_media(data: dict[str, Any]) -> bool:
    """Whether a record says itself where its pictures are."""
    named = any(key in data for key in ("images", "image", "videos", "video", "image_info", "video_info"))
    return named or any(_has_part(value) for value in data.values())


def _has_part(value: Any) -> bool:
    if isinstance(value, dict):
        kind = value.get("type")
        return (kind in ("image", "image_url", "video", "video_url") and kind in value) or any(map(_has_part, value.values()))
    return isinstance(value, list) and any(map(_has_part, value))
