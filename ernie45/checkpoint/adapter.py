"""LoRA adapters as PEFT's `save_pretrained` writes them (adapter_config.json, adapter_model.safetensors), read for a model.

Knows nothing about training, or about which requests will use them. What PEFT can write and we cannot serve is an error,
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
from torch import Tensor, nn

from ernie45.checkpoint.inventory import inventory
from ernie45.checkpoint.layouts import pt
from ernie45.checkpoint.layouts.table import expand
from ernie45.checkpoint.reader import DTYPES
from ernie45.checkpoint.tensor_file import FileTensor, OpenFiles, read_header
from ernie45.config.errors import CheckpointError
from ernie45.model.lora import LoraAdapter, LowRank
from ernie45.model.multimodal import ErnieModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_MERGE = "merge it into the model with peft's merge_and_unload() and serve the merged model"
# Of PEFT's configuration: what we use, and what says how the adapter was made but not what it computes.
_USED = {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
# The other ways of PEFT to start (pissa, olora, corda, loftq, ...) change the model's own weights too.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class _Place(NamedTuple):
    """Where an adapted module of theirs is in ours: rows start to stop of a projection's output."""

    projection: nn.Module
    start: int
    stop: int


@dataclass
class _Part:
    """One module's matrices as found: a_LD [rank, in], b_NL [out, rank]."""

    a_LD: Tensor | None = None
    b_NL: Tensor | None = None


def load_adapter(path: str | Path, model: ErnieModel) -> LoraAdapter:
    """The LoRA adapter of a folder, on the model's device and in its dtype; scale alpha / r, or alpha / sqrt(r) with rslora.

    It may change q_proj, k_proj, v_proj, o_proj, and gate_proj, up_proj, down_proj of dense layers and of shared experts, and
    lm_head. CheckpointError if the folder is damaged, made for another model, or asks for more than that.
    """
    folder = Path(path).expanduser()
    config = _read_config(folder)
    tensors = read_header(_weights_file(folder))
    places = _places(model)
    parts: dict[str, _Part] = {}
    digest = blake2b(digest_size=16)
    with OpenFiles(frozenset(tensor.file for tensor in tensors.values())) as opened:
        for name, source in sorted(tensors.items()):
            tensor = _read(source, name, opened)
            digest.update(f"{name} {source.dtype} {source.shape} ".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
            _sort_in(folder, name, tensor, model, parts)
    scales = {module: _scale(folder, config, module, part) for module, part in parts.items()}
    digest.update(json.dumps(scales, sort_keys=True).encode())
    if not parts:
        raise CheckpointError(f"{_weights_file(folder)} has no lora_A and lora_B tensors; save the adapter again")
    return LoraAdapter(_fuse(folder, parts, scales, places, model), digest.hexdigest())


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
        raise CheckpointError(f"peft_type ({kind!r}) in {file} must be LORA; train a LoRA adapter, or {_MERGE}")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"bias ({config['bias']!r}) in {file} must be 'none': the model has no biases; {_MERGE}")
    if config.get("init_lora_weights", True) not in _INITS:
        raise CheckpointError(
            f"init_lora_weights ({config['init_lora_weights']!r}) in {file} has changed the model's own weights; save it with "
            "peft's path_initial_model_for_weight_conversion, which makes it an ordinary LoRA, or " + _MERGE
        )
    for name, value in config.items():
        if value and name not in _USED and name not in _WITHOUT_EFFECT:
            raise CheckpointError(f"{name} ({_short(value)}) in {file} is not supported; train without it, or {_MERGE}")
    return config


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _weights_file(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(f"adapter ({folder}) has no {WEIGHTS_FILE}; save it with safe_serialization=True")
    return file


def _places(model: ErnieModel) -> dict[str, _Place]:
    """By the name of the module in the released files, where transformers' text models have the same."""
    places = {}
    for slot in expand(pt.LAYOUT, model.config, inventory(model.config)):
        module = model.get_submodule(slot.parameter.rpartition(".")[0])
        if slot.expert is None and isinstance(module, nn.Linear) and slot.parameter.startswith(("layers.", "lm_head.")):
            places[slot.tensor.removesuffix(".weight")] = _Place(module, slot.start, slot.stop)
    places["lm_head"] = _Place(model.head, 0, model.config.vocab_size)
    return places


def _module_name(name: str) -> str:
    """PEFT's name of a tensor or module as the released files have it: transformers' multimodal class nests the decoder."""
    name = name.removeprefix("base_model.model.")
    return "model." + name.removeprefix("model.language_model.") if name.startswith("model.language_model.") else name


def _read(source: FileTensor, name: str, opened: OpenFiles) -> Tensor:
    if source.dtype not in DTYPES:
        raise CheckpointError(f"tensor {name} in {source.file} has dtype {source.dtype}; it must be one of {', '.join(DTYPES)}")
    tensor = torch.empty(source.shape, dtype=DTYPES[source.dtype])
    opened.read(source.file, source.begin, tensor.view(-1).view(torch.uint8).numpy().data)
    return tensor


def _sort_in(folder: Path, name: str, tensor: Tensor, model: ErnieModel, parts: dict[str, _Part]) -> None:
    """Put a tensor of the file to its module. PEFT adds the embeddings when lm_head is adapted; they must be the model's."""
    match = re.fullmatch(r"(.*)\.lora_([AB])\.weight", name)
    if match:
        part = parts.setdefault(match[1].removeprefix("base_model.model."), _Part())
        setattr(part, "a_LD" if match[2] == "A" else "b_NL", tensor)
        return
    own = {"lm_head.base_layer.weight": model.head_weight, "model.embed_tokens.weight": model.embed_tokens.weight}
    ours = own.get(_module_name(name))
    if ours is None:
        raise CheckpointError(f"tensor {name} in {folder / WEIGHTS_FILE} is not a part of LoRA that is supported; {_MERGE}")
    # The model may be loaded in a shorter type than the file has, or the other way round.
    dtype = min(tensor.dtype, ours.dtype, key=lambda dtype: dtype.itemsize)
    if tensor.shape != ours.shape or not torch.equal(tensor.to(dtype), ours.detach().cpu().to(dtype)):
        raise CheckpointError(f"tensor {name} in {folder / WEIGHTS_FILE} differs from the model's own; {_MERGE}")


def _scale(folder: Path, config: Mapping[str, Any], module: str, part: _Part) -> float:
    if part.a_LD is None or part.b_NL is None:
        missing = "lora_A" if part.a_LD is None else "lora_B"
        raise CheckpointError(f"{folder / WEIGHTS_FILE} lacks {missing} of {module}; save the adapter again")
    file, alpha = folder / CONFIG_FILE, config.get("lora_alpha")
    try:
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        rank = len(part.a_LD)
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise CheckpointError(
            f"lora_alpha or alpha_pattern in {file} cannot be used ({error}); save the adapter again"
        ) from error


def _fuse(
    folder: Path, parts: Mapping[str, _Part], scales: Mapping[str, float], places: Mapping[str, _Place], model: ErnieModel
) -> dict[nn.Module, LowRank]:
    """One pair a projection of ours: the parts' A below each other, their B as blocks."""
    found: dict[nn.Module, list[tuple[_Place, Tensor, Tensor]]] = {}
    for module, part in parts.items():
        place = places.get(_module_name(module))
        if place is None:
            raise CheckpointError(
                f"{module} in {folder / WEIGHTS_FILE} cannot have an adapter here: the decoder's q_proj, k_proj, v_proj, "
                "o_proj, the gate_proj, up_proj, down_proj of dense layers and shared experts, and lm_head can; "
                f"train with target_modules that name these alone, or {_MERGE}"
            )
        assert part.a_LD is not None, module
        assert part.b_NL is not None, module
        expected = ((len(part.a_LD), _width(place.projection)), (place.stop - place.start, len(part.a_LD)))
        if (part.a_LD.shape, part.b_NL.shape) != expected:
            raise CheckpointError(
                f"{module} in {folder / WEIGHTS_FILE} has lora_A {tuple(part.a_LD.shape)} and lora_B {tuple(part.b_NL.shape)}, "
                f"but this model takes {expected[0]} and {expected[1]}; use the model that the adapter was trained on"
            )
        found.setdefault(place.projection, []).append((place, part.a_LD.float(), part.b_NL.float() * scales[module]))
    return {projection: _block_diagonal(group, projection, model) for projection, group in found.items()}


def _width(projection: nn.Module) -> int:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _block_diagonal(parts: list[tuple[_Place, Tensor, Tensor]], projection: nn.Module, model: ErnieModel) -> LowRank:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    b_NL = torch.zeros(len(weight), sum(len(a_LD) for _, a_LD, _ in parts))
    column = 0
    for place, a_LD, part_b_NL in parts:
        b_NL[place.start : place.stop, column : column + len(a_LD)] = part_b_NL
        column += len(a_LD)
    a_LD = torch.cat([a_LD for _, a_LD, _ in parts])
    return LowRank(*(x.to(device=model.device, dtype=model.dtype) for x in (a_LD, b_NL)))
