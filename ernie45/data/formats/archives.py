"""Files of records that are read through a library: Parquet tables and WebDataset tars; and what is compressed.

Knows nothing about what a record means.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
from bisect import bisect_right
from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from ernie45.config.errors import ConfigError, DataError, StorageError
from ernie45.data.formats.files import CsvFile, JsonFile, Raw, RecordFile, TextFile, parse_json

_TABLES = {".jsonl": JsonFile.index, ".json": JsonFile.index, ".csv": CsvFile.index, ".tsv": CsvFile.index}
_SMALL_BYTES = 1 << 24
_ROWS_AT_ONCE = 256
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

    def unpack(out: Path) -> None:
        with gzip.open(path, "rb") as source, open(out, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)

    try:
        return _kept(path, "", unpack)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"data file ({path}) is a damaged or cut-off gzip: {error}; fetch it again") from error


def _kept(path: Path, suffix: str, make: Callable[[Path], None]) -> Path:
    """A file that `make` writes from `path`, made once: named by path, size and time. StorageError if there is no room."""
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ernie45" / "unpacked"
    target = folder / (key + suffix)
    if target.is_file():
        return target
    temporary = folder / f".{target.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make(temporary)
        os.replace(temporary, target)
    except gzip.BadGzipFile:  # which is an OSError
        raise
    except OSError as error:
        raise StorageError(f"data file ({path}) cannot be unpacked into {folder}: {error}; unpack it by hand") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


class ParquetFile:
    """A table; columns may hold lists, structs and bytes.

    Parquet can only be read a group of rows at a time, so anything but a small file is unpacked once, as an Arrow file that is
    mapped into memory.
    """

    def __init__(self, path: Path, content: Path, borders: list[int]) -> None:
        self.path, self._content, self._borders = path, content, borders
        self._batches: Any = None

    @classmethod
    def index(cls, path: Path) -> "ParquetFile":
        """ConfigError if pyarrow is not installed, DataError if the file is damaged, StorageError if there is no room."""
        if find_spec("pyarrow") is None:
            raise ConfigError(f"pyarrow (not installed) is needed to read {path}; pip install 'ernie45[train]'")
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile as Table

        try:
            meta = Table(path).metadata
            is_small = meta.num_row_groups <= 1 and path.stat().st_size <= _SMALL_BYTES
            content = path if is_small else _kept(path, ".arrow", lambda out: _write_arrow(path, out))
        except (ArrowException, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise DataError(f"data file ({path}) is no Parquet or damaged: {error}; fetch it again") from error
        batches = _read_arrow(content) if not is_small else None
        sizes = (
            [meta.num_rows] if batches is None else [batches.get_batch(i).num_rows for i in range(batches.num_record_batches)]
        )
        return cls(path, content, list(accumulate(sizes, initial=0)))

    def __len__(self) -> int:
        return self._borders[-1]

    def origin(self, index: int) -> str:
        """file:row N, from 1"""
        return f"{self.path}:row {index + 1}"

    def read(self, index: int) -> Raw:
        """A row as an object; empty cells are left out."""
        if self._batches is None:
            self._batches = _read_table(self.path) if self._content == self.path else _read_arrow(self._content)
        number = bisect_right(self._borders, index) - 1
        rows = self._batches if self._content == self.path else self._batches.get_batch(number)
        return Raw(
            _without_nulls(rows.slice(index - self._borders[number], 1).to_pylist()[0]), self.origin(index), self.path.parent
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}


def _read_table(path: Path) -> Any:
    from pyarrow.parquet import read_table

    return read_table(path)


def _read_arrow(path: Path) -> Any:
    from pyarrow import ipc, memory_map

    return ipc.open_file(memory_map(str(path)))


def _write_arrow(path: Path, out: Path) -> None:
    from pyarrow import ipc
    from pyarrow.parquet import ParquetFile as Table

    table = Table(path)
    with ipc.new_file(str(out), table.schema_arrow) as writer:
        for batch in table.iter_batches(_ROWS_AT_ONCE):
            writer.write_batch(batch)


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
