"""LoRA adapters in files, as PEFT's `save_pretrained` writes them: adapter_config.json and adapter_model.safetensors.

Knows nothing about training, or about which requests will use them. What PEFT can write and we cannot compute is an error,
never left out: an adapter without a part of it answers wrongly, and nobody sees it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ernie45.checkpoint.adapter_targets import Target, adapter_targets
from ernie45.checkpoint.reader import DTYPES
from ernie45.checkpoint.tensor_file import FileTensor, OpenFiles, read_header
from ernie45.config.errors import CheckpointError
from ernie45.config.model import ModelConfig
from ernie45.ops.low_rank import LowRank

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MERGE = "merge it into the model with peft's merge_and_unload() and use the merged model"
# Of PEFT's configuration: what we use, and what says how the adapter was made but not what it computes.
_USED = {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type",
}  # fmt: skip
# The other ways of PEFT to start (pissa, olora, corda, loftq, ...) change the model's own weights too.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_OWN_NAMES = ("lm_head.base_layer.weight", "model.embed_tokens.weight")


class AdapterWeights(NamedTuple):
    """parts: target name -> pair in fp32, scale inside. own: copies of the model's own tensors that the file has, by their
    names in the released files. content_hash: of all numbers."""

    parts: dict[str, LowRank]
    own: dict[str, Tensor]
    content_hash: str


@dataclass
class _Part:
    """One module's matrices as found: a_LD [rank, in], b_NL [out, rank]; of a stack, one expert beside the other."""

    a_LD: Tensor | None = None
    b_NL: Tensor | None = None


def read_adapter(folder: Path, config: ModelConfig) -> AdapterWeights:
    """An adapter's numbers; scale alpha / r, or alpha / sqrt(r) with rslora, in B.

    CheckpointError if the folder is damaged, made for another model, or asks for more than LoRA on `adapter_targets`.
    """
    settings = _read_config(folder)
    tensors = read_header(_weights_file(folder))
    parts: dict[str, _Part] = {}
    own: dict[str, Tensor] = {}
    digest = blake2b(digest_size=16)
    with OpenFiles(frozenset(tensor.file for tensor in tensors.values())) as opened:
        for name, source in sorted(tensors.items()):
            tensor = _read(source, name, opened)
            digest.update(f"{name} {source.dtype} {source.shape} ".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
            _sort_in(folder, name, tensor, parts, own)
    if not parts:
        raise CheckpointError(f"{_weights_file(folder)} has no lora_A and lora_B tensors; save the adapter again")
    places = _Places(config)
    found: dict[str, LowRank] = {}
    scales: dict[str, float] = {}
    for module, part in parts.items():
        pair = _whole(folder, module, part)
        target = places.find(folder, module, pair)
        scales[module] = _scale(folder, settings, target, _rank_of(target, pair))
        found[target.name] = _apart(folder, module, target, pair, scales[module])
    digest.update(json.dumps(scales, sort_keys=True).encode())
    return AdapterWeights(found, own, digest.hexdigest())


def _read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration, once nothing in it asks for what we cannot do."""
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"adapter ({folder}) has no readable {CONFIG_FILE} ({error.strerror}); give the folder that peft's "
            "save_pretrained has written"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointError(f"peft_type ({kind!r}) in {file} must be LORA; train a LoRA adapter, or {MERGE}")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"bias ({config['bias']!r}) in {file} must be 'none': biases are not adapted; {MERGE}")
    if config.get("init_lora_weights", True) not in _INITS:
        raise CheckpointError(
            f"init_lora_weights ({config['init_lora_weights']!r}) in {file} has changed the model's own weights; save it with "
            "peft's path_initial_model_for_weight_conversion, which makes it an ordinary LoRA, or " + MERGE
        )
    for name, value in config.items():
        if value and name not in _USED and name not in _WITHOUT_EFFECT:
            raise CheckpointError(f"{name} ({_short(value)}) in {file} is not supported; train without it, or {MERGE}")
    return config


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _weights_file(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(f"adapter ({folder}) has no {WEIGHTS_FILE}; save it with safe_serialization=True")
    return file


def _read(source: FileTensor, name: str, opened: OpenFiles) -> Tensor:
    if source.dtype not in DTYPES:
        raise CheckpointError(f"tensor {name} in {source.file} has dtype {source.dtype}; it must be one of {', '.join(DTYPES)}")
    tensor = torch.empty(source.shape, dtype=DTYPES[source.dtype])
    opened.read(source.file, source.begin, tensor.view(-1).view(torch.uint8).numpy().data)
    return tensor


def _module_name(name: str) -> str:
    """PEFT's name of a tensor or module as the released files have it: transformers' multimodal class nests the decoder."""
    name = name.removeprefix("base_model.model.")
    return "model." + name.removeprefix("model.language_model.") if name.startswith("model.language_model.") else name


def _sort_in(folder: Path, name: str, tensor: Tensor, parts: dict[str, _Part], own: dict[str, Tensor]) -> None:
    """Put a tensor of the file to its module. PEFT adds the embeddings when lm_head is adapted."""
    match = re.fullmatch(r"(.*)\.lora_([AB])\.weight", name)
    if match:
        part = parts.setdefault(match[1].removeprefix("base_model.model."), _Part())
        setattr(part, "a_LD" if match[2] == "A" else "b_NL", tensor)
    elif _module_name(name) in _OWN_NAMES:
        own[_module_name(name)] = tensor
    else:
        raise CheckpointError(f"tensor {name} in {folder / WEIGHTS_FILE} is not a part of LoRA that is supported; {MERGE}")


def _whole(folder: Path, module: str, part: _Part) -> LowRank:
    if part.a_LD is None or part.b_NL is None:
        missing = "lora_A" if part.a_LD is None else "lora_B"
        raise CheckpointError(f"{folder / WEIGHTS_FILE} lacks {missing} of {module}; save the adapter again")
    return LowRank(part.a_LD, part.b_NL)


class _Places:
    """Targets by the names that PEFT gives them."""

    def __init__(self, config: ModelConfig) -> None:
        self._by_module: dict[str, list[Target]] = {}
        for target in adapter_targets(config).values():
            self._by_module.setdefault(_module_name(target.peft_module), []).append(target)

    def find(self, folder: Path, module: str, pair: LowRank) -> Target:
        """The target of a pair. Of a pool's two stacks, which PEFT wraps one in the other, the widths tell which it is."""
        targets = self._by_module.get(re.sub(r"\.experts(\.base_layer)+$", ".experts", _module_name(module)))
        if targets is None:
            raise CheckpointError(
                f"{module} in {folder / WEIGHTS_FILE} cannot have an adapter here: this model's projections, its experts, "
                "tower and resampler can, and lm_head; train with target_modules and target_parameters that name these, or "
                + MERGE
            )
        for target in targets:
            if len(targets) == 1 or (pair.a_LD.shape[-1], len(pair.b_NL)) == (target.in_features, target.out_features):
                return target
        raise _misfit(folder, module, targets[0], pair)


def _rank_of(target: Target, pair: LowRank) -> int:
    return max(1, len(pair.a_LD) // max(1, target.num_experts))


def _apart(folder: Path, module: str, target: Target, pair: LowRank, scale: float) -> LowRank:
    """The pair in our shapes. PEFT lays a stack's ranks side by side: A by expert, then rank; B by rank, then expert."""
    rank = _rank_of(target, pair)
    experts = max(1, target.num_experts)
    if pair.a_LD.shape != (rank * experts, target.in_features) or pair.b_NL.shape != (target.out_features, rank * experts):
        raise _misfit(folder, module, target, pair)
    a, b = pair.a_LD.float(), pair.b_NL.float() * scale
    if target.num_experts:
        a, b = a.unflatten(0, (experts, rank)), b.unflatten(1, (rank, experts)).permute(2, 0, 1).contiguous()
    return LowRank(a, b)


def _misfit(folder: Path, module: str, target: Target, pair: LowRank) -> CheckpointError:
    ranks = _rank_of(target, pair) * max(1, target.num_experts)
    return CheckpointError(
        f"{module} in {folder / WEIGHTS_FILE} has lora_A {tuple(pair.a_LD.shape)} and lora_B {tuple(pair.b_NL.shape)}, "
        f"but this model takes {(ranks, target.in_features)} and {(target.out_features, ranks)}; use the model that the "
        "adapter was trained on"
    )


def _scale(folder: Path, config: Mapping[str, Any], target: Target, rank: int) -> float:
    file, alpha = folder / CONFIG_FILE, config.get("lora_alpha")
    name = f"{target.peft_module}.{target.peft_parameter}" if target.num_experts else target.peft_module
    try:
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise CheckpointError(
            f"lora_alpha or alpha_pattern in {file} cannot be used ({error}); save the adapter again"
        ) from error
