"""One step's input as tensors: packed tokens, rope positions, sequence borders and which rows go to which expert pool.

Knows nothing about text, files or scheduling. All index lists are made here on the host, once a step for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.inputs import ModelInput
from ernie45.model.lora import AdapterRows


class PoolRows(NamedTuple):
    """The rows of the packed step that one expert pool serves. index is None when it serves all of them."""

    index_R: Tensor | None
    count: int


@dataclass(frozen=True, kw_only=True)
class VisionBatch:
    """Patches of all media of a step, in the order of their placeholder tokens.

    patches_PC: uint8 [P, C]. grids: (frames, height, width) in patches for each picture, host integers.
    """

    patches_PC: Tensor
    grids: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Packed sequences of one step.

    token_ids_T int64 [T]; positions_TX int64 [T, 3] (time, height, width); cu_seqlens: host borders 0 ... T;
    text_rows, vision_rows: the two pools' rows; feature_rows_R: rows that take a vision feature, in order (None: none);
    vision: pictures to encode in this step, or None. adapters: the LoRA adapters of the step, each with its rows.
    experts_TLA: int16, for each MoE layer the experts that routers must choose (`ops.moe.route`), -1 where they choose
    themselves; None: everywhere.
    """

    token_ids_T: Tensor
    positions_TX: Tensor
    cu_seqlens: tuple[int, ...]
    text_rows: PoolRows
    vision_rows: PoolRows
    feature_rows_R: Tensor | None = None
    vision: VisionBatch | None = None
    adapters: tuple[AdapterRows, ...] = ()
    experts_TLA: Tensor | None = None

    def __len__(self) -> int:
        return self.cu_seqlens[-1]


def pool_rows(is_vision_T: np.ndarray, device: torch.device | str) -> tuple[PoolRows, PoolRows]:
    """Row lists of the text and of the vision pool from a host mask [T]."""
    num_vision = int(np.count_nonzero(is_vision_T))
    num_text = len(is_vision_T) - num_vision
    if not num_vision:
        return PoolRows(None, num_text), PoolRows(torch.empty(0, dtype=torch.int64, device=device), 0)
    if not num_text:
        return PoolRows(torch.empty(0, dtype=torch.int64, device=device), 0), PoolRows(None, num_vision)
    text, vision = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in (~is_vision_T, is_vision_T))
    return PoolRows(text, num_text), PoolRows(vision, num_vision)


def pack(inputs: Sequence[ModelInput], device: torch.device | str = "cpu") -> PackedBatch:
    """Join whole sequences into one step. At least one, none empty."""
    token_ids = np.concatenate([item.token_ids for item in inputs])
    text, vision = pool_rows(np.concatenate([item.is_vision for item in inputs]), device)
    cu_seqlens = np.cumsum([0, *(len(item) for item in inputs)])
    spans = [
        np.arange(start + medium.offset, start + medium.offset + medium.length)
        for start, item in zip(cu_seqlens, inputs, strict=False)
        for medium in item.media
    ]
    pictures = None
    if spans:
        pictures = VisionBatch(
            patches_PC=torch.from_numpy(np.concatenate([item.patches for item in inputs if item.media])).to(device),
            grids=tuple(medium.grid for item in inputs for medium in item.media),
        )
    return PackedBatch(
        token_ids_T=torch.from_numpy(token_ids).to(device),
        positions_TX=torch.from_numpy(np.concatenate([item.positions for item in inputs])).to(device),
        cu_seqlens=tuple(int(border) for border in cu_seqlens),
        text_rows=text,
        vision_rows=vision,
        feature_rows_R=torch.from_numpy(np.concatenate(spans)).to(device) if spans else None,
        vision=pictures,
    )
