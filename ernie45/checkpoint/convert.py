"""A model folder rewritten in another layout without building the model: names, pieces and transpositions only.

Knows nothing about torch. Types are kept tensor by tensor. Files that are not weights are carried over.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ernie45.checkpoint.folder import CONFIG_FILE, ModelFolder, open_folder
from ernie45.checkpoint.layouts import find_layout
from ernie45.checkpoint.layouts.table import Slot, expand
from ernie45.checkpoint.staging import staged_folder
from ernie45.checkpoint.tensor_file import ITEM_BYTES, FileTensor, OpenFiles
from ernie45.checkpoint.writer import (
    CONFIG_DTYPES,
    DEFAULT_SHARD_BYTES,
    UNSIGNED,
    Progress,
    Source,
    plan_weights,
    write_config,
    write_weights,
)
from ernie45.config.errors import CheckpointError
from ernie45.config.model_json import LayoutName, config_to_json

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".pdparams", ".pt", ".pth", ".gguf")
_VIDEO_TOKEN = "<|VIDEO_PLACEHOLDER|>"


def convert(
    source: str | Path,
    destination: str | Path,
    layout: LayoutName,
    *,
    progress: Progress | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write the model in `source` (a folder in any layout, or `tiny`) to the folder `destination` in the given layout.

    Tensors are bit-identical after any chain of conversions that ends in the first layout; the second head that old files of
    tied models have is dropped. CheckpointError for a source that is not a whole model; StorageError if the destination is
    not empty (unless `overwrite`) or the disk is full. On any error, and when killed, the destination is as it was before.
    """
    folder = open_folder(source)
    with OpenFiles(frozenset(tensor.file for tensor in folder.tensors.values())) as opened:
        target = Target(Path(destination), layout, max_shard_bytes, overwrite)
        write_folder(folder, FolderSource(folder, opened), target, progress)


class Target(NamedTuple):
    """Where a converted model goes, and how."""

    path: Path
    layout: LayoutName
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False


def write_folder(folder: ModelFolder, rows: Source, target: Target, progress: Progress | None = None) -> None:
    """A model folder like `folder`, with the values of `rows`. Errors as in `convert`."""
    if target.path.exists() and os.path.samefile(folder.path, target.path):
        raise CheckpointError(f"destination ({target.path}) is the source; choose another folder")
    layout = find_layout(target.layout)
    slots = expand(layout, folder.config, folder.parameters)
    plan = plan_weights(slots, rows, file_format=layout.file_format, max_shard_bytes=target.max_shard_bytes)
    carried = carried_files(folder.path)
    config_json = _config_json(folder, target.layout)
    needed = plan.needed_bytes + sum(file.stat().st_size for file in carried)
    with staged_folder(target.path, needed_bytes=needed, replaces=CONFIG_FILE if target.overwrite else None) as staged:
        write_weights(staged, plan, rows, progress)
        for file in carried:
            staged.copy(file)
        write_config(staged, config_json)


def carried_files(path: Path) -> list[Path]:
    """What belongs to a model besides weights and config.json: tokenizer, processor, template, remote code, licence."""
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file()
        and file.name != CONFIG_FILE
        and not file.name.startswith(".")
        and not file.name.endswith(_WEIGHT_SUFFIXES)
    )


class FolderSource:
    """Rows of our parameters from the files of a folder in any layout."""

    def __init__(self, folder: ModelFolder, opened: OpenFiles) -> None:
        self._tensors, self._opened = folder.tensors, opened
        self._slots: dict[tuple[str, int | None], list[Slot]] = {}
        for slot in folder.slots:
            self._slots.setdefault((slot.parameter, slot.expert), []).append(slot)
        self._last: tuple[str, np.ndarray] | None = None

    def dtype(self, slot: Slot) -> str:
        pieces = self._overlapping(slot)
        dtypes = sorted({self._tensors[piece.tensor].dtype for piece in pieces})
        if len(dtypes) != 1:
            names = ", ".join(piece.tensor for piece in pieces)
            raise CheckpointError(
                f"{names} have different dtypes ({', '.join(dtypes)}) but become one tensor, {slot.tensor}; "
                "convert them to one dtype first"
            )
        return dtypes[0]

    def rows(self, slot: Slot) -> np.ndarray:
        pieces = self._overlapping(slot)
        if len(pieces) == 1:
            return self._read(pieces[0], slot.start, slot.stop)
        parts = [self._read(piece, max(piece.start, slot.start), min(piece.stop, slot.stop)) for piece in pieces]
        return np.concatenate(parts)

    def _overlapping(self, slot: Slot) -> list[Slot]:
        """The folder's slots that hold rows of `slot`, in the order of rows; together they hold all."""
        pieces = self._slots[slot.parameter, slot.expert]
        return sorted((piece for piece in pieces if piece.start < slot.stop and slot.start < piece.stop), key=lambda p: p.start)

    def _read(self, piece: Slot, start: int, stop: int) -> np.ndarray:
        """Rows start:stop of the parameter, which all lie in `piece`."""
        tensor = self._tensors[piece.tensor]
        start, stop = start - piece.start, stop - piece.start
        if piece.transpose:
            return self._whole(piece.tensor, tensor).T[start:stop]
        shape, begin = tensor.shape, tensor.begin
        if piece.file_row is not None:
            shape = shape[1:]
            begin += piece.file_row * tensor.num_bytes // tensor.shape[0]
        shape = (stop - start, *shape[1:])
        row_items = int(np.prod(shape[1:], dtype=np.int64))
        return self._bytes(tensor, begin + start * row_items * ITEM_BYTES[tensor.dtype], shape)

    def _whole(self, name: str, tensor: FileTensor) -> np.ndarray:
        """A whole tensor; the last one is kept, as its neighbours in the target are pieces of it."""
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = (name, self._bytes(tensor, tensor.begin, tensor.shape))
        return self._last[1]

    def _bytes(self, tensor: FileTensor, begin: int, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, UNSIGNED[ITEM_BYTES[tensor.dtype]])
        if out.size:
            self._opened.read(tensor.file, begin, out.reshape(-1).view(np.uint8).data)
        return out


def _config_json(folder: ModelFolder, layout: LayoutName) -> dict[str, Any]:
    """Our keys; keys that we do not read are kept where source and target have the same form of config.json."""
    own = config_to_json(
        folder.config,
        layout,
        dtype=CONFIG_DTYPES.get(folder.dtype, "float32"),
        video_token=find_video_token(folder.path, folder.config_json),
    )
    nested = "text_config" in folder.config_json
    if nested or "text_config" in own:
        return own
    dropped = {"dtype", "num_nextn_predict_layers", "rope_parameters", "rope_scaling", "image_token_id", "video_token_id"}
    return {key: value for key, value in folder.config_json.items() if key not in own and key not in dropped} | own


def find_video_token(path: Path, config_json: Mapping[str, Any]) -> int | None:
    """The id of the video placeholder in a folder's config.json or tokenizer.json, if one of them has it."""
    found = config_json.get("video_token_id")
    if isinstance(found, int):
        return found
    try:
        tokens = json.loads((path / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    except (OSError, ValueError, AttributeError):
        return None
    named = [token for token in tokens if isinstance(token, Mapping) and token.get("content") == _VIDEO_TOKEN]
    return named[0].get("id") if named else None
