"""Weights written as sharded safetensors, one tensor at a time, from anything that can give rows of our parameters.

Knows nothing about torch or about where the rows come from. Values are moved as unsigned integers of their size: nothing here
rounds, so what is written is bit for bit what the source gives.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any, Protocol

import numpy as np

from ernie45.checkpoint.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from ernie45.checkpoint.layouts.table import Slot
from ernie45.checkpoint.staging import StagedFolder
from ernie45.checkpoint.tensor_file import ITEM_BYTES, make_header

DEFAULT_SHARD_BYTES = 5_000_000_000
# Room for a tensor's entries in header and index, and for config.json and the last block of each file.
_BYTES_PER_NAME, _BYTES_PER_FOLDER = 400, 64 << 10
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# (bytes written so far, bytes in all, name of the tensor just written)
Progress = Callable[[int, int, str], None]


class Source(Protocol):
    """Where values come from, in terms of our parameters."""

    def dtype(self, slot: Slot) -> str:
        """Type of the slot's rows, in safetensors' spelling."""
        ...

    def rows(self, slot: Slot) -> np.ndarray:
        """The slot's rows of its parameter, not transposed, as unsigned integers of the item's size."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor to write and the slots that fill it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    slots: tuple[Slot, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class WeightsPlan:
    """The files to write, in order: each a list of tensors."""

    shards: tuple[tuple[PlannedTensor, ...], ...]
    file_format: str

    @property
    def total_bytes(self) -> int:
        return sum(tensor.num_bytes for shard in self.shards for tensor in shard)

    @property
    def needed_bytes(self) -> int:
        """Disk space for weights, headers, index and config.json, rounded up."""
        return self.total_bytes + _BYTES_PER_NAME * sum(map(len, self.shards)) + _BYTES_PER_FOLDER

    @property
    def file_names(self) -> list[str]:
        count = len(self.shards)
        if count == 1:
            return [WEIGHTS_FILE]
        return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def plan_weights(slots: Iterable[Slot], source: Source, *, file_format: str, max_shard_bytes: int) -> WeightsPlan:
    """Tensors in the order of `slots`, cut into files of at most `max_shard_bytes` (a larger tensor has a file to itself)."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for name, group in groupby(slots, key=lambda slot: slot.tensor):
        own = tuple(group)
        tensor = PlannedTensor(name=name, dtype=source.dtype(own[0]), shape=own[0].shape, slots=own)
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    # Widest items first: every tensor then begins at a multiple of its item, which readers that map the file rely on.
    ordered = (sorted(shard, key=lambda tensor: -ITEM_BYTES[tensor.dtype]) for shard in shards)
    return WeightsPlan(shards=tuple(map(tuple, ordered)), file_format=file_format)


def write_weights(staged: StagedFolder, plan: WeightsPlan, source: Source, progress: Progress | None = None) -> None:
    """Write all files of the plan and, if there are several, the index. Memory: about two tensors."""
    done = 0

    def blocks(shard: Sequence[PlannedTensor]) -> Iterator[bytes | memoryview]:
        nonlocal done
        yield make_header({tensor.name: (tensor.dtype, tensor.shape) for tensor in shard}, plan.file_format)
        for tensor in shard:
            yield _fill(tensor, source)
            done += tensor.num_bytes
            if progress is not None:
                progress(done, plan.total_bytes, tensor.name)

    for name, shard in zip(plan.file_names, plan.shards, strict=True):
        staged.write(name, blocks(shard))
    if len(plan.shards) > 1:
        pairs = zip(plan.file_names, plan.shards, strict=True)
        weight_map = {tensor.name: name for name, shard in pairs for tensor in shard}
        index = {"metadata": {"total_size": plan.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(staged, INDEX_FILE, index)


def write_config(staged: StagedFolder, config_json: dict[str, Any]) -> None:
    """Last of all files: a folder without it is not a model."""
    write_json(staged, CONFIG_FILE, config_json)


def write_json(staged: StagedFolder, name: str, data: dict[str, Any]) -> None:
    """One JSON file, indented, with non-ASCII text as it is."""
    staged.write(name, [(json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()])


def _fill(tensor: PlannedTensor, source: Source) -> memoryview:
    """The tensor's bytes."""
    out = None
    for slot in tensor.slots:
        rows = source.rows(slot)
        rows = rows.T if slot.transpose else rows
        if slot.file_row is None:
            out = np.ascontiguousarray(rows)
            continue
        if out is None:
            out = np.empty(tensor.shape, rows.dtype)
        out[slot.file_row] = rows
    assert out is not None, tensor
    assert out.shape == tensor.shape, (tensor.name, out.shape, tensor.shape)
    return out.reshape(-1).view(np.uint8).data
