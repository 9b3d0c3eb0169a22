"""The safetensors file format, by the byte: list the tensors of a file, read ranges of bytes, make a header.

Knows nothing about models or torch. The safetensors package is used in the tests, as the judge, and not here: it writes only
tensors that are all in memory, and it reads through a memory map, which counts the file against the process's memory and ends
the process (SIGBUS) when a file shrinks. Reading bytes straight into the parameter needs neither.

Format: 8 bytes little-endian length of the header; the header, JSON: name -> {dtype, shape, data_offsets [begin, end)}; data.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie45.config.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """Where a tensor lies: `num_bytes` at byte `begin` of `file`, row-major, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(file: Path) -> dict[str, FileTensor]:
    """The tensors of a file. CheckpointError if it is missing, cut short or not a safetensors file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            raw = stream.read(length) if 0 < length <= min(_MAX_HEADER_BYTES, size) else b""
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); download or convert the model again") from error
    if size < _LENGTH_BYTES or not raw or len(raw) < length:
        raise CheckpointError(f"{file} ({size} bytes) is not a whole safetensors file; download or convert the model again")
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors, end = _parse(file, entries, _LENGTH_BYTES + length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged header ({error}); download or convert the model again") from error
    if end != size:
        raise CheckpointError(
            f"{file} has {size} bytes, but its header describes {end}: it is {'cut short' if size < end else 'damaged'}; "
            "download or convert the model again"
        )
    return tensors


def _parse(file: Path, entries: Mapping[str, Any], data_begin: int) -> tuple[dict[str, FileTensor], int]:
    """Tensors and the end of the file; ValueError unless the tensors lie side by side without a gap."""
    tensors, end = {}, data_begin
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if entry["dtype"] not in ITEM_BYTES:
            raise ValueError(f"unknown dtype {entry['dtype']!r} of {name}")
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, stop)):
            raise ValueError(f"shape {shape} or bytes {begin}:{stop} of {name}")
        tensor = FileTensor(file=file, dtype=entry["dtype"], shape=shape, begin=data_begin + begin)
        if tensor.begin != end or data_begin + stop != end + tensor.num_bytes:
            raise ValueError(f"bytes {begin}:{stop} of {name}")
        tensors[name] = tensor
        end += tensor.num_bytes
    return tensors, end


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], file_format: str) -> bytes:
    """Header for tensors (name -> dtype, shape) whose data follow in the given order. `file_format` goes into the metadata."""
    entries: dict[str, Any] = {"__metadata__": {"format": file_format}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw


class OpenFiles:
    """Reads byte ranges of files, each opened once; safe to call from several threads. Use as a context manager."""

    def __init__(self, files: frozenset[Path]) -> None:
        self._descriptors = {}
        try:
            for file in sorted(files):
                self._descriptors[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def read(self, file: Path, begin: int, out: memoryview) -> None:
        """Fill `out` (bytes) from byte `begin` on. CheckpointError if the file ends before or the disk fails."""
        descriptor, done = self._descriptors[file], 0
        while done < len(out):
            try:
                count = os.preadv(descriptor, [out[done:]], begin + done)
            except OSError as error:
                where = f"{file} cannot be read at byte {begin + done}"
                raise CheckpointError(f"{where} ({error.strerror}); check the disk") from error
            if count == 0:
                raise CheckpointError(f"{file} ends early, at byte {begin + done}; download or convert the model again")
            done += count
