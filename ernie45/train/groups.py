"""Which optimiser a parameter gets, at which rate and with which decay, by its name; and the table of it for people.

Knows nothing about how optimisers work.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ernie45.config.train import OptimConfig

_VISION = re.compile(r"(vision_model|resampler_model)\.")
_TOWER_BLOCK = re.compile(r"vision_model\.blocks\.(\d+)\.")
_PATCHES = re.compile(r"vision_model\.patch_embed\.")
_ROUTER = re.compile(r"\.router\.weight$")
# An adapter's two factors are no matrices of their own: what counts is their product.
_NOT_MATRIX = re.compile(r"(embed_tokens|lm_head)\.weight$|\.router\.weight$|^head\.|^lora\.")
# First match wins.
_PARTS = (
    (re.compile(r"pools\.(\w+)\.router\."), r"\1 routers"),
    (re.compile(r"pools\.(\w+)\."), r"\1 experts"),
    (re.compile(r"vision_model\."), "vision tower"),
    (re.compile(r"resampler_model\."), "resampler"),
    (re.compile(r"model\.mtp\."), "token prediction ahead"),
    (re.compile(r"model\.embed_tokens\."), "embedding"),
    (re.compile(r"model\.lm_head\."), "head"),
    (re.compile(r"model\..*\.shared\."), "shared experts"),
    (re.compile(r"model\..*\.self_attn\."), "attention"),
    (re.compile(r"model\..*\.mlp\."), "feed-forward"),
    (re.compile(r"model\..*norm"), "norms"),
)


class ParameterKind(NamedTuple):
    """How the optimiser treats a parameter. lr_ratio: of the peak rate. decays: whether weight decay applies."""

    muon: bool
    lr_ratio: float
    decays: bool


def kinds_of(parameters: Mapping[str, Tensor], config: OptimConfig) -> dict[str, ParameterKind]:
    """With Muon: matrices go to it, but for embeddings, heads, gates and adapters. Vectors never decay.

    The tower's layers count from the language model: the last block has `vision_layer_decay` once, each one before it once
    more, and the patch embedding, below them all, once more than the first (BEiT's layer-wise decay, as in ERNIE's tuning).
    """
    depth = max((int(found[1]) + 1 for name in parameters if (found := _TOWER_BLOCK.search(name))), default=0)
    ratio_of_pattern = config.ratio_of_pattern()

    def kind(name: str, parameter: Tensor) -> ParameterKind:
        muon = config.optimizer == "muon" and parameter.ndim >= 2 and not _NOT_MATRIX.search(name)
        adapter = name.startswith("lora.")
        ratio = 1.0 if muon or adapter or config.optimizer == "adamw" else config.adam_lr_ratio
        ratio *= config.vision_lr_ratio if _VISION.search(name) else 1.0
        if block := _TOWER_BLOCK.search(name):
            ratio *= config.vision_layer_decay ** (depth - int(block[1]))
        elif _PATCHES.search(name):
            ratio *= config.vision_layer_decay ** (depth + 1)
        ratio *= config.router_lr_ratio if _ROUTER.search(name) else 1.0
        for pattern, further in ratio_of_pattern.items():
            ratio *= further if re.search(pattern, name) else 1.0
        return ParameterKind(muon, ratio, parameter.ndim >= 2)

    return {name: kind(name, parameter) for name, parameter in parameters.items()}


def is_frozen(name: str, config: OptimConfig) -> bool:
    """Whether one of the `frozen` patterns is found in the name."""
    return any(re.search(pattern, name) for pattern in config.frozen)


def group_table(
    parameters: Mapping[str, Tensor], config: OptimConfig, further_ratio: Callable[[str], float | None]
) -> list[dict[str, Any]]:
    """One row for each part of the model and way to treat it: the parameter groups of a stage, for `--dry-run`.

    further_ratio: of a parameter's rate in this stage, None: it does not train. lr is the highest of the stage.
    """
    kinds = kinds_of(parameters, config)
    rows: dict[tuple, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        further = further_ratio(name)
        trains = further is not None and parameter.requires_grad and not is_frozen(name, config)
        kind = kinds[name]
        lr = config.lr * kind.lr_ratio * further if trains and further is not None else 0.0
        facts = {
            "group": _part(name),
            "optimizer": ("muon" if kind.muon else "adamw") if trains else "frozen",
            "lr": float(f"{lr:.6g}"),
            "weight_decay": config.weight_decay if trains and kind.decays else 0.0,
        }
        row = rows.setdefault(tuple(facts.values()), facts | {"tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += parameter.numel()
    return list(rows.values())


def _part(name: str) -> str:
    for pattern, part in _PARTS:
        if found := pattern.search(name):
            return found.expand(part)
    return name.split(".")[0]
