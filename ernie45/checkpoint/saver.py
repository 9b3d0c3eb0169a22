"""A model in memory written as a model folder in any layout.

Knows nothing about where the model came from.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ernie45.checkpoint.convert import carried_files, find_video_token
from ernie45.checkpoint.folder import CONFIG_FILE, read_config_json, resolve_model
from ernie45.checkpoint.inventory import inventory
from ernie45.checkpoint.layouts import find_layout
from ernie45.checkpoint.layouts.table import Slot, expand
from ernie45.checkpoint.reader import DTYPES, stored_tensors
from ernie45.checkpoint.staging import staged_folder
from ernie45.checkpoint.tensor_file import ITEM_BYTES
from ernie45.checkpoint.writer import CONFIG_DTYPES, DEFAULT_SHARD_BYTES, UNSIGNED, plan_weights, write_config, write_weights
from ernie45.config.model_json import LayoutName, config_to_json
from ernie45.model.multimodal import ErnieModel

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_model(
    model: ErnieModel,
    path: str | Path,
    layout: LayoutName = "pt",
    *,
    processor_files_from: str | Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write weights and config.json, and the tokenizer and processor files of another model folder if one is given.

    Types are those in memory. Memory: about two tensors. StorageError as in `staged_folder`; CheckpointError if the layout
    cannot describe the model.
    """
    target = find_layout(layout)
    parameters = inventory(model.config)
    source = ModelSource(stored_tensors(model, parameters))
    slots = expand(target, model.config, parameters)
    plan = plan_weights(slots, source, file_format=target.file_format, max_shard_bytes=max_shard_bytes)
    origin = None if processor_files_from is None else resolve_model(processor_files_from)
    carried = [] if origin is None else carried_files(origin)
    video_token = None if origin is None else find_video_token(origin, read_config_json(origin))
    config_json = config_to_json(model.config, layout, dtype=CONFIG_DTYPES[_NAMES[model.dtype]], video_token=video_token)
    needed = plan.needed_bytes + sum(file.stat().st_size for file in carried)
    with staged_folder(Path(path), needed_bytes=needed, replaces=CONFIG_FILE if overwrite else None) as staged:
        write_weights(staged, plan, source)
        for file in carried:
            staged.copy(file)
        write_config(staged, config_json)


class ModelSource:
    """Rows of parameters from memory, on whatever device they are."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def dtype(self, slot: Slot) -> str:
        return _NAMES[self._tensors[slot.parameter].dtype]

    def rows(self, slot: Slot) -> np.ndarray:
        tensor = self._tensors[slot.parameter]
        tensor = (tensor if slot.expert is None else tensor[slot.expert])[slot.start : slot.stop].cpu().contiguous()
        return tensor.view(torch.uint8).numpy().view(UNSIGNED[ITEM_BYTES[self.dtype(slot)]])
