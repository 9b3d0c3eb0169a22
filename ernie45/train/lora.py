"""Low-rank adapters as trainable parameters: their start, and how a step sees them.

Knows nothing about files or objectives. The model's own weights are frozen: they have no gradient, no moments, and W + B A is
never formed. A step goes the way of serving: the batch carries the adapter.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ernie45.checkpoint.adapter_targets import adapter_targets, bind
from ernie45.config.errors import ConfigError
from ernie45.config.lora import LoraConfig
from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.batch import PackedBatch
from ernie45.model.lora import AdapterRows, Dropout, LoraAdapter, LowRank
from ernie45.model.multimodal import ErnieModel

_Batch = TypeVar("_Batch", LanguageBatch, PackedBatch)


class LoraParameters(nn.Module):
    """A and B of every chosen projection, under the projection's name: "layers.0.self_attn.q_proj.a"."""

    def __init__(self, model: ErnieModel, config: LoraConfig, seed: int = 0) -> None:
        """A starts as PEFT's does, uniform within 1 / sqrt(inputs), B at zero: the first step's outputs are the model's own."""
        super().__init__()
        self.config = config
        table = adapter_targets(model.config)
        self.names = config.choose([name for name in table if name != "lm_head"])
        generator = torch.Generator().manual_seed(seed)
        for name in self.names:
            a_shape, b_shape = table[name].shapes(config.rank)
            bound = 1 / math.sqrt(table[name].in_features)
            place = _descend(self, name)
            place.a = nn.Parameter(torch.empty(a_shape).uniform_(-bound, bound, generator=generator))
            place.b = nn.Parameter(torch.zeros(b_shape))

    def parts(self) -> dict[str, LowRank]:
        """The pairs by target name, without the scale."""
        return {name: LowRank(*(getattr(self.get_submodule(name), side) for side in "ab")) for name in self.names}

    def adapter(self, model: ErnieModel, noise: int | None = None) -> LoraAdapter:
        """The adapter with gradient to the parameters. noise: seed of its dropout; None: without dropout."""
        scaled = {name: LowRank(pair.a_LD, pair.b_NL * self.config.scale) for name, pair in self.parts().items()}
        pairs, experts = bind(scaled, model)
        dropout = Dropout(self.config.dropout, noise) if self.config.dropout and noise is not None else None
        return LoraAdapter(pairs, "", experts, dropout)


def trained_modules(model: ErnieModel, config: LoraConfig, router: RouterConfig, seed: int) -> nn.ModuleDict:
    """{"model"}, all of it to be trained; or {"model", "lora"} with the model frozen. ConfigError as in `LoraConfig.choose`.

    router: its upkeep would change weights that an adapter cannot hold, so with one it must be off.
    """
    if not config.rank:
        return nn.ModuleDict({"model": model})
    for name in ("bias_rate", "orthogonal_weight"):
        if getattr(router, name):
            raise ConfigError(
                f"router.{name} ({getattr(router, name)}) must be 0 with lora.rank above 0: an adapter leaves the routers alone"
            )
    lora = LoraParameters(model, config, seed)
    model.requires_grad_(False)
    return nn.ModuleDict({"model": model, "lora": lora})


def with_lora(modules: nn.ModuleDict | Mapping[str, nn.Module], batch: _Batch) -> _Batch:
    """The batch with the adapter under training, if there is one; with dropout where a `LanguageBatch` has noise."""
    if "lora" not in modules:
        return batch
    lora, model = modules["lora"], modules["model"]
    assert isinstance(lora, LoraParameters), type(lora)
    assert isinstance(model, ErnieModel), type(model)
    if isinstance(batch, PackedBatch):
        return replace(batch, adapters=(AdapterRows(lora.adapter(model), None),))
    rows = (AdapterRows(lora.adapter(model, batch.noise), None),)
    return replace(batch, packed=replace(batch.packed, adapters=rows))


def _descend(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made where there is none."""
    place = root
    for name in path.split("."):
        if not hasattr(place, name):
            place.add_module(name, nn.Module())
        place = place.get_submodule(name)
    return place


def num_parameters(modules: nn.ModuleDict) -> dict[str, int]:
    """{"model": all, "trained": with gradient}, for people."""
    counts = {"model": 0, "trained": 0}
    for name, parameter in modules.named_parameters():
        counts["model"] += parameter.numel() * name.startswith("model.")
        counts["trained"] += parameter.numel() * parameter.requires_grad
    return counts
