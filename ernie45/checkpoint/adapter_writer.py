"""A LoRA adapter written as PEFT's `save_pretrained` does: files that PEFT, vLLM's family and our own engine read.

Knows nothing about how the adapter was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ernie45.checkpoint.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from ernie45.checkpoint.adapter_targets import Target, adapter_targets
from ernie45.checkpoint.staging import staged_folder
from ernie45.checkpoint.tensor_file import make_header
from ernie45.config.model import ModelConfig
from ernie45.ops.low_rank import LowRank


@dataclass(frozen=True, kw_only=True)
class AdapterForm:
    """What adapter_config.json says beside the targets. base: where the model came from."""

    rank: int
    alpha: float
    rslora: bool
    base: str | None


def write_adapter(folder: Path, parts: Mapping[str, LowRank], config: ModelConfig, form: AdapterForm) -> None:
    """Write the pairs, by target name and without their scale, in fp32, to a new folder. StorageError as in `staged_folder`."""
    targets = [target for target in adapter_targets(config).values() if target.name in parts]
    assert len(targets) == len(parts), sorted(set(parts) - {target.name for target in targets})
    tensors: dict[str, Tensor] = {}
    for module, group in groupby(targets, key=lambda target: target.peft_module):
        own = list(group)
        for place, target in enumerate(own):
            # Of two stacks of one module the first is wrapped first, and so is inside.
            inside = ".base_layer" * (len(own) - 1 - place)
            prefix = f"base_model.model.{module}{inside}"
            tensors |= _side_by_side(prefix, parts[target.name], target)
    blocks = [tensor.detach().cpu().float().contiguous() for tensor in tensors.values()]
    header = make_header({name: ("F32", tuple(block.shape)) for name, block in zip(tensors, blocks, strict=True)}, "pt")
    settings = (json.dumps(_settings(targets, form), indent=2) + "\n").encode()
    needed = len(header) + len(settings) + sum(block.nbytes for block in blocks)
    with staged_folder(folder, needed_bytes=needed) as staged:
        staged.write(WEIGHTS_FILE, [header, *(block.view(-1).view(torch.uint8).numpy().data for block in blocks)])
        staged.write(CONFIG_FILE, [settings])


def _side_by_side(prefix: str, pair: LowRank, target: Target) -> dict[str, Tensor]:
    """A pair under PEFT's names. A stack's A is laid out by expert, then rank; its B by rank, then expert."""
    a, b = pair
    if target.num_experts:
        a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
    return {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}


def _settings(targets: list[Target], form: AdapterForm) -> dict[str, Any]:
    alpha = int(form.alpha) if form.alpha == int(form.alpha) else form.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": form.base,
        "inference_mode": True,
        "bias": "none",
        "r": form.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": form.rslora,
        "target_modules": [target.peft_module for target in targets if not target.peft_parameter],
        "target_parameters": [f"{target.peft_module}.{target.peft_parameter}" for target in targets if target.peft_parameter],
    }
