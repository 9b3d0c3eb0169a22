"""A model folder with a LoRA adapter added to its weights: W + B A, one tensor at a time.

Knows nothing about models in memory. Rounding is that of the files' own type: merging into bf16 weights loses what is smaller
than their last digit.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ernie45.checkpoint.adapter import check_own
from ernie45.checkpoint.adapter_files import AdapterWeights, read_adapter
from ernie45.checkpoint.adapter_targets import Target as AdapterTarget
from ernie45.checkpoint.adapter_targets import adapter_targets
from ernie45.checkpoint.convert import FolderSource, Target, write_folder
from ernie45.checkpoint.folder import open_folder
from ernie45.checkpoint.layouts.table import Slot
from ernie45.checkpoint.reader import DTYPES
from ernie45.checkpoint.tensor_file import OpenFiles
from ernie45.checkpoint.writer import Progress
from ernie45.config.errors import CheckpointError
from ernie45.ops.low_rank import LowRank


def merge(source: str | Path, adapter: str | Path, target: Target, progress: Progress | None = None) -> None:
    """Write the model of `source` with the adapter merged. Errors as in `convert` and `load_adapter`."""
    folder, path = open_folder(source), Path(adapter).expanduser()
    weights = read_adapter(path, folder.config)
    if "lm_head" in weights.parts and folder.config.tie_word_embeddings:
        raise CheckpointError(
            f"adapter ({path}) changes lm_head, which is the embedding of this model too, so it cannot be merged; serve it "
            "with ernie45 serve --lora-modules"
        )
    with OpenFiles(frozenset(tensor.file for tensor in folder.tensors.values())) as opened:
        rows = FolderSource(folder, opened)
        for name, tensor in weights.own.items():
            tied = "embed_tokens" in name or folder.config.tie_word_embeddings
            parameter = "embed_tokens.weight" if tied else "lm_head.weight"
            slot = next(slot for slot in folder.slots if slot.parameter == parameter)
            check_own(path, name, tensor, _tensor(rows.rows(slot), rows.dtype(slot)))
        write_folder(folder, MergedSource(rows, weights, adapter_targets(folder.config)), target, progress)


class MergedSource:
    """Rows of a folder's parameters with the adapter's products added."""

    def __init__(self, rows: FolderSource, weights: AdapterWeights, targets: dict[str, AdapterTarget]) -> None:
        self._rows = rows
        self._by_parameter: dict[str, list[tuple[AdapterTarget, LowRank]]] = {}
        for name, pair in weights.parts.items():
            self._by_parameter.setdefault(targets[name].parameter, []).append((targets[name], pair))

    def dtype(self, slot: Slot) -> str:
        """Type of the slot's rows."""
        return self._rows.dtype(slot)

    def rows(self, slot: Slot) -> np.ndarray:
        """The slot's rows, merged in fp32 and rounded once; untouched bits where the adapter changes nothing."""
        plain = self._rows.rows(slot)
        changed = [
            (target, pair)
            for target, pair in self._by_parameter.get(slot.parameter, ())
            if target.start < slot.stop and slot.start < target.stop
        ]
        if not changed:
            return plain
        dtype = self.dtype(slot)
        weight_ND = _tensor(plain, dtype).float()
        for target, pair in changed:
            a_LD, b_NL = pair if slot.expert is None else (pair.a_LD[slot.expert], pair.b_NL[slot.expert])
            first, last = max(slot.start, target.start), min(slot.stop, target.stop)
            weight_ND[first - slot.start : last - slot.start].addmm_(b_NL[first - target.start : last - target.start], a_LD)
        return weight_ND.to(DTYPES[dtype]).view(-1).view(torch.uint8).numpy().view(plain.dtype).reshape(plain.shape)


def _tensor(rows: np.ndarray, dtype: str) -> Tensor:
    """The rows' bits as numbers."""
    return torch.from_numpy(np.ascontiguousarray(rows).reshape(-1).view(np.uint8)).view(DTYPES[dtype]).view(rows.shape)
