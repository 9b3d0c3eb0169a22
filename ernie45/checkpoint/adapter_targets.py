"""What of a model a low-rank adapter can change: our name, our parameter and rows, and where PEFT has it.

Knows nothing about files, ranks or training. PEFT wraps the modules of transformers' classes, which nest the decoder of a
multimodal model as `language_model` and keep q, k, v, gate and up apart; a pool's experts are two stacked parameters of one
module, `experts`, which PEFT wraps twice: the first of them inside, under `base_layer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from ernie45.checkpoint.inventory import inventory
from ernie45.config.model import ModelConfig
from ernie45.model.lora import ExpertPair, LowRank
from ernie45.model.moe import ExpertPool
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.low_rank import fuse, pad_rank


@dataclass(frozen=True, kw_only=True)
class Target:
    """A projection, or one of a pool's two stacks.

    name: ours, with fused projections in their parts. parameter[start:stop] (of each expert) is its weight. num_experts: 0 for
    a single projection. peft_module, peft_parameter: how PEFT names it; a parameter is named where PEFT cannot take the module.
    """

    name: str
    parameter: str
    start: int
    stop: int
    in_features: int
    num_experts: int
    peft_module: str
    peft_parameter: str = ""

    @property
    def out_features(self) -> int:
        return self.stop - self.start

    @property
    def module(self) -> str:
        """Path of our module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and of B."""
        stack = (self.num_experts,) if self.num_experts else ()
        return (*stack, rank, self.in_features), (*stack, self.out_features, rank)


def adapter_targets(config: ModelConfig) -> dict[str, Target]:
    """Everything linear but the routers, by name, in the order of computation; the head last."""
    table = _Table(config)
    if config.vision is not None:
        _tower(table, config.vision.depth)
    for layer in range(config.num_layers):
        _layer(table, config, layer)
    head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    table.add("lm_head", f"{head}.weight", "lm_head")
    return table.targets


class _Table:
    """Targets as they are listed; sizes come from the inventory of parameters."""

    def __init__(self, config: ModelConfig) -> None:
        self.targets: dict[str, Target] = {}
        self._parameters = inventory(config)

    def add(self, name: str, parameter: str, peft: str, rows: tuple[int, int] | None = None, peft_parameter: str = "") -> None:
        found = self._parameters[parameter]
        out, size = found.matrix
        start, stop = rows or (0, out)
        self.targets[name] = Target(
            name=name,
            parameter=parameter,
            start=start,
            stop=stop,
            in_features=size,
            num_experts=found.shape[0] if found.stacked else 0,
            peft_module=peft,
            peft_parameter=peft_parameter,
        )


def _tower(table: _Table, depth: int) -> None:
    table.add("vision_model.patch_embed", "vision_model.patch_embed.weight", "model.vision_tower.patch_embed.proj")
    for block in range(depth):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            name = f"blocks.{block}.{part}"
            table.add(f"vision_model.{name}", f"vision_model.{name}.weight", f"model.vision_tower.{name}")
    for name in ("spatial_linear.fc1", "spatial_linear.fc2", "temporal_linear.fc1", "temporal_linear.fc2", "mlp"):
        table.add(f"resampler_model.{name}", f"resampler_model.{name}.weight", f"model.resampler_model.{name}")


def _layer(table: _Table, config: ModelConfig, layer: int) -> None:
    ours = f"layers.{layer}"
    theirs = f"model.{'language_model.' if config.is_multimodal else ''}layers.{layer}"
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    fused = f"{ours}.self_attn.qkv_proj.weight"
    for part, start, stop in (("q", 0, query), ("k", query, query + key), ("v", query + key, query + 2 * key)):
        table.add(f"{ours}.self_attn.{part}_proj", fused, f"{theirs}.self_attn.{part}_proj", (start, stop))
    table.add(f"{ours}.self_attn.o_proj", f"{ours}.self_attn.o_proj.weight", f"{theirs}.self_attn.o_proj")
    # PEFT takes every module called gate_proj, up_proj or down_proj of a text-only MoE model for one of its experts.
    as_parameter = "weight" if config.expert_pools and not config.is_multimodal else ""
    if not config.is_moe_layer(layer):
        _feed_forward(table, (f"{ours}.mlp", f"{theirs}.mlp"), config.intermediate_size, as_parameter)
        return
    for pool in config.expert_pools:
        own = f"{ours}.mlp.pools.{pool.modality}"
        experts = f"{theirs}.mlp.{f'{pool.modality}_moe.' if config.is_multimodal else ''}experts"
        table.add(f"{own}.gate_up", f"{own}.gate_up_weight", experts, peft_parameter="gate_up_proj")
        table.add(f"{own}.down", f"{own}.down_weight", experts, peft_parameter="down_proj")
    if config.shared_ffn_size:
        names = f"{ours}.mlp.shared", f"{theirs}.mlp.shared_experts"
        _feed_forward(table, names, config.shared_ffn_size, as_parameter)


def _feed_forward(table: _Table, names: tuple[str, str], size: int, peft_parameter: str) -> None:
    ours, theirs = names
    for part, rows in (("gate", (0, size)), ("up", (size, 2 * size))):
        table.add(f"{ours}.{part}_proj", f"{ours}.gate_up_proj.weight", f"{theirs}.{part}_proj", rows, peft_parameter)
    table.add(f"{ours}.down_proj", f"{ours}.down_proj.weight", f"{theirs}.down_proj", peft_parameter=peft_parameter)


def bind(parts: Mapping[str, LowRank], model: ErnieModel) -> tuple[dict[nn.Module, LowRank], dict[nn.Module, ExpertPair]]:
    """Pairs by target name, scale inside, as pairs of the model's modules: of projections, and of expert pools.

    Parts of one fused projection become one pair. Differentiable.
    """
    table = adapter_targets(model.config)
    pairs: dict[nn.Module, LowRank] = {}
    experts: dict[nn.Module, ExpertPair] = {}
    chosen = [table[name] for name in table if name in parts]
    for path, group in groupby(chosen, key=lambda target: target.module):
        targets, module = list(group), model.get_submodule(path)
        if isinstance(module, ExpertPool):
            stacks = {target.name.rpartition(".")[2]: pad_rank(parts[target.name]) for target in targets}
            experts[module] = ExpertPair(stacks.get("gate_up"), stacks.get("down"))
            continue
        weight = module.weight
        assert isinstance(weight, Tensor), path
        pairs[module] = fuse([(target.start, parts[target.name]) for target in targets], len(weight))
    return pairs, experts
