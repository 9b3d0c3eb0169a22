"""What a run will need before it starts: bytes of weights, gradients, optimiser and activations, operations, tokens.

Knows nothing about files or stages. Works on modules on any device, "meta" too, where nothing is allocated.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ernie45.config.model import ModelConfig
from ernie45.config.train import LoopConfig, OptimConfig
from ernie45.ops.cross_entropy import CHUNK_ELEMENTS
from ernie45.train.groups import is_frozen, kinds_of
from ernie45.train.metrics import step_flops

_FP32, _BF16, _INT64 = 4, 2, 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The largest micro-batch. tokens: packed, vision_tokens of them visual; patches: of its pictures; labels: rows of loss."""

    tokens: int
    vision_tokens: int
    patches: int
    labels: int

    @staticmethod
    def of_budget(config: ModelConfig, token_budget: int, pictures: bool = True) -> "Shard":
        """A shard of that many tokens, half of them visual if there are pictures; every textual token has a label."""
        vision = token_budget // 2 if pictures and config.vision is not None else 0
        merge = config.vision.spatial_merge_size**2 if config.vision is not None else 0
        return Shard(tokens=token_budget, vision_tokens=vision, patches=vision * merge, labels=token_budget - vision)


def memory_forecast(
    parameters: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    model: ModelConfig,
    optim: OptimConfig,
    loop: LoopConfig,
    shard: Shard,
) -> dict[str, int]:
    """Bytes a process, by what they are for; "total" is their sum. trained: those of the parameters that any stage trains.

    weights      4 a parameter in fp32; in bf16 2 and a master copy of 4; a part's inverse share with loop.shard "full"
    gradients    4 a trained parameter
    optimizer    4 (Muon: momentum) or 8 (AdamW: two moments)
    average      4 where averaged weights are kept
    activations  `activation_bytes`, until backward has used them
    update       4 for each of Muon's parameters, and 8 times the largest set of equally shaped matrices, which are made
                 orthogonal at once; not at the same time as activations, so the larger of the two counts in the total
    Left out: the interpreter with torch (about 300 MB), freed memory that the allocator keeps, data being prepared, and a
    checkpoint being written, which is a copy of weights, optimiser and average.
    """
    trained = {name: parameter for name, parameter in trained.items() if not is_frozen(name, optim)}
    kinds = kinds_of(trained, optim)
    matrices = {name: parameter for name, parameter in trained.items() if kinds[name].muon}
    muon = sum(parameter.numel() for parameter in matrices.values())
    num_trained = sum(parameter.numel() for parameter in trained.values())
    num_all = sum(parameter.numel() for parameter in parameters.values())
    parts = loop.processes if loop.shard == "full" else 1
    weights = num_all * _FP32 if loop.precision == "fp32" else num_all * _BF16 + num_trained * _FP32
    found = {
        "weights": weights // parts,
        "gradients": num_trained * _FP32 // parts,
        "optimizer": (muon + 2 * (num_trained - muon)) * _FP32 // parts,
        "average": num_trained * _FP32 // parts if loop.export_average else 0,
    }
    work = {
        "activations": activation_bytes(model, loop, shard),
        "update": (muon + 8 * _most_alike(matrices.values())) * _FP32 // parts,
    }
    return {**found, **work, "total": sum(found.values()) + max(work.values())}


def _most_alike(matrices: Iterable[Tensor]) -> int:
    """Parameters in the largest set of matrices of one shape."""
    alike = Counter[tuple[int, ...]]()
    for parameter in matrices:
        alike[tuple(parameter.shape[-2:])] += parameter.numel()
    return max(alike.values(), default=0)


def activation_bytes(model: ModelConfig, loop: LoopConfig, shard: Shard) -> int:
    """What backward keeps of one shard: numbers of each token (patch) and block, times the bytes of a number.

    decoder block  attention: 4 D + (H + 2 J) K + H K   (inputs, both norms; queries, keys, values; output)
    dense          2 F of gate and up, F of their product
    MoE            A (D + 3 F) for a routed token (gathered input, gate and up, product), 3 S for the shared experts, 2 D, and
                   4 E + 32 A bytes of routing
    tower block    11 W + 3 I; resampler: 8 of its merged width a visual token
    head           one chunk of logits, gradients of its rows and of the output embedding
    Recomputation keeps D (W) a block and one block whole; "routing" adds attention's output and the routing.
    """
    size = _FP32 if loop.precision == "fp32" else _BF16
    width, heads = model.hidden_size, model.num_heads * model.head_dim
    kv = model.num_kv_heads * model.head_dim
    attention = shard.tokens * (4 * width + (heads + 2 * kv) + heads) * size
    dense = shard.tokens * 3 * model.intermediate_size * size
    routing = 0
    experts = shard.tokens * (3 * model.shared_ffn_size + 2 * width) * size
    rows = {"text": shard.tokens - shard.vision_tokens, "vision": shard.vision_tokens}
    for pool in model.expert_pools:
        routing += rows[pool.modality] * (pool.num_experts * _FP32 + 4 * pool.num_active * _INT64)
        experts += rows[pool.modality] * pool.num_active * (width + 3 * pool.ffn_size) * size
    moe, num_moe = experts + routing, model.num_moe_layers
    num_dense = model.num_layers - num_moe
    if loop.recompute == "none":
        decoder = model.num_layers * attention + num_moe * moe + num_dense * dense
    else:
        saved = shard.tokens * width * size + (shard.tokens * heads * size if loop.recompute == "routing" else 0)
        decoder = model.num_layers * saved + attention + max(moe if num_moe else 0, dense if num_dense else 0)
        decoder += num_moe * routing if loop.recompute == "routing" else 0
    return decoder + _vision_bytes(model, loop, shard, size) + _head_bytes(model, shard, size)


def _vision_bytes(model: ModelConfig, loop: LoopConfig, shard: Shard, size: int) -> int:
    if model.vision is None:
        return 0
    vision = model.vision
    merged = vision.hidden_size * vision.spatial_merge_size**2
    block = shard.patches * (11 * vision.hidden_size + 3 * vision.intermediate_size) * size
    tower = vision.depth * block
    if loop.recompute != "none":
        tower = (
            vision.depth if loop.recompute == "full" else 2 * vision.depth
        ) * shard.patches * vision.hidden_size * size + block
    return tower + shard.patches * vision.patch_dim * _FP32 + shard.vision_tokens * 8 * merged * size


def _head_bytes(model: ModelConfig, shard: Shard, size: int) -> int:
    rows = min(shard.labels, max(128, CHUNK_ELEMENTS // model.vocab_size))
    return (
        rows * model.vocab_size * size
        + 2 * shard.labels * model.hidden_size * size
        + model.vocab_size * model.hidden_size * _FP32
    )


def run_forecast(model: ModelConfig, num_steps: int, num_shards: int, shard: Shard) -> dict[str, Any]:
    """Steps, tokens and operations of a stage, from its largest shard: an upper bound where shards are not full."""
    tokens = num_steps * num_shards * shard.tokens
    flops = step_flops(model, shard.tokens - shard.vision_tokens, shard.vision_tokens, shard.patches) * num_steps * num_shards
    return {"steps": num_steps, "tokens_at_most": tokens, "flops_at_most": flops}
