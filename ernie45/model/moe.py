"""Heterogeneous mixture of experts: a list of modality-isolated expert pools and one shared feed-forward.

Knows nothing about how tokens got their modality, and nothing about other ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie45.config.model import ExpertPoolConfig, Modality, ModelConfig
from ernie45.model.batch import PackedBatch, PoolRows
from ernie45.model.linear import Linear
from ernie45.model.lora import AdapterRows, add_low_rank, changes, expert_adapters
from ernie45.ops import decode, matmul
from ernie45.ops.feed_forward import feed_forward
from ernie45.ops.low_rank import ExpertAdapter, Routed, moe_ffn_adapted
from ernie45.ops.moe import count_experts, moe_ffn, route
from ernie45.ops.rows import join_rows, split_rows
from ernie45.ops.swiglu import swiglu


class RouterOutput(NamedTuple):
    """What one pool's router did in one layer: the input of balance losses, bias updates and usage pictures.

    logits_RE fp32 with gradient; experts_RA int64; weights_RA fp32 with gradient; tokens_per_expert_E int64.
    """

    pool: Modality
    logits_RE: Tensor
    experts_RA: Tensor
    weights_RA: Tensor
    tokens_per_expert_E: Tensor


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x); gate and up are one projection, gate rows first. No bias."""

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * ffn_size, bias=False)
        self.down_proj = Linear(ffn_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor, adapters: tuple[AdapterRows, ...] = ()) -> Tensor:
        if changes(self.gate_up_proj, adapters) or changes(self.down_proj, adapters):
            return self._adapted(x_TD, adapters)
        if decode.serves(x_TD):
            return decode.ffn(x_TD, self.gate_up_proj.weight, self.down_proj.weight)
        return feed_forward(x_TD, self.gate_up_proj.weight, self.down_proj.weight)

    def _adapted(self, x_TD: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """The compiled kernel is both products in one, so with something to add between them they run one by one."""
        linear = decode.linear if decode.serves(x_TD) else matmul.linear
        gate_up_TG = add_low_rank(linear(x_TD, self.gate_up_proj.weight), x_TD, self.gate_up_proj, adapters)
        hidden_TF = swiglu(gate_up_TG)
        return add_low_rank(linear(hidden_TF, self.down_proj.weight), hidden_TF, self.down_proj, adapters)


class Router(nn.Module):
    """fp32 gate of one pool. The correction bias is state of the balancing rule, not a trained parameter.

    Both stay fp32 when the model is cast: routing decided in bf16 differs from the released model's.
    """

    weight: Tensor
    correction_bias: Tensor

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        self.register_buffer("correction_bias", torch.zeros(num_experts, dtype=torch.float32))

    def _apply(self, fn, recurse: bool = True):
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


class ExpertPool(nn.Module):
    """Routed experts of one modality, stacked: gate_up_weight [E, 2F, D] (gate rows first), down_weight [E, D, F]."""

    def __init__(self, config: ExpertPoolConfig, hidden_size: int, norm_min: float) -> None:
        super().__init__()
        self.config = config
        self.norm_min = norm_min
        self.router = Router(hidden_size, config.num_experts)
        self.gate_up_weight = nn.Parameter(torch.empty(config.num_experts, 2 * config.ffn_size, hidden_size))
        self.down_weight = nn.Parameter(torch.empty(config.num_experts, hidden_size, config.ffn_size))

    def forward(
        self, x_RD: Tensor, replay_RA: Tensor | None = None, adapters: Sequence[ExpertAdapter] = ()
    ) -> tuple[Tensor, RouterOutput]:
        """x [R, D] -> ([R, D], what the router did). R may be 0. replay_RA: as in `route`. adapters: those that change it."""
        router = self.router
        if not len(x_RD) and not torch.is_grad_enabled():
            return x_RD, self._nothing_routed(x_RD.device)
        logits_RE, experts_RA, weights_RA = route(
            x_RD, router.weight, router.correction_bias, self.config.num_active, self.norm_min, replay_RA
        )
        counts_E = count_experts(experts_RA, self.config.num_experts)
        if adapters:
            routed = Routed(experts_RA, weights_RA, counts_E)
            y_RD = moe_ffn_adapted(x_RD, self.gate_up_weight, self.down_weight, routed, adapters)
        else:
            y_RD = moe_ffn(x_RD, self.gate_up_weight, self.down_weight, experts_RA, weights_RA, counts_E)
        return y_RD, RouterOutput(self.config.modality, logits_RE, experts_RA, weights_RA, counts_E)

    def _nothing_routed(self, device: torch.device) -> RouterOutput:
        """The output of a router without rows, when no gradient is wanted: decode is all text, layer after layer."""
        num_experts, num_active = self.config.num_experts, self.config.num_active
        return RouterOutput(
            self.config.modality,
            torch.empty(0, num_experts, device=device),
            torch.empty(0, num_active, dtype=torch.int64, device=device),
            torch.empty(0, num_active, device=device),
            torch.zeros(num_experts, dtype=torch.int64, device=device),
        )


def experts_by_token(routers: Sequence[Sequence[RouterOutput]], batch: PackedBatch) -> Tensor:
    """The experts that each token was given in each MoE layer, int16 [T, L, A]; -1 where its pool has fewer active than A."""
    num_active = max(router.experts_RA.shape[1] for router in routers[0])
    device = routers[0][0].experts_RA.device
    out_TLA = torch.full((len(batch), len(routers), num_active), -1, dtype=torch.int16, device=device)
    for of_pool in zip(*routers, strict=True):
        rows = batch.text_rows if of_pool[0].pool == "text" else batch.vision_rows
        if rows.count:
            experts_RLA = torch.stack([router.experts_RA for router in of_pool], 1).to(torch.int16)
            place = slice(None) if rows.index_R is None else rows.index_R
            out_TLA[place, :, : experts_RLA.shape[2]] = experts_RLA
    return out_TLA


class HeterogeneousMoE(nn.Module):
    """out = pool of the token's modality (x) + shared(x).

    Every pool runs in every step, with zero rows where the step has no token for it: on many ranks the collectives then
    always match, and every parameter always has a gradient.
    """

    def __init__(self, config: ModelConfig, place: int) -> None:
        """place: among the model's MoE layers."""
        super().__init__()
        self.place = place
        self.pools = nn.ModuleDict(
            {pool.modality: ExpertPool(pool, config.hidden_size, config.norm_min) for pool in config.expert_pools}
        )
        self.shared = FeedForward(config.hidden_size, config.shared_ffn_size) if config.shared_ffn_size else None

    def forward(self, x_TD: Tensor, batch: PackedBatch) -> tuple[Tensor, list[RouterOutput]]:
        """x [T, D] -> ([T, D], one RouterOutput a pool). batch says which rows each pool serves."""
        rows = [batch.text_rows if modality == "text" else batch.vision_rows for modality in self.pools]
        inputs = _deal(x_TD, rows)
        outputs, routers = [], []
        for pool, its_rows, x_RD in zip(self.pools.values(), rows, inputs, strict=True):
            replay_RA = None if batch.experts_TLA is None else _take(batch.experts_TLA[:, self.place], its_rows)
            adapters = expert_adapters(pool, its_rows.index_R, len(x_TD), batch.adapters)
            y_RD, router_output = pool(x_RD, replay_RA, adapters)
            outputs.append(y_RD)
            routers.append(router_output)
        out_TD = _collect(outputs, rows, x_TD)
        return (out_TD if self.shared is None else out_TD + self.shared(x_TD, batch.adapters)), routers


def _take(x_TD: Tensor, rows: PoolRows) -> Tensor:
    return x_TD if rows.index_R is None else x_TD.index_select(0, rows.index_R)


def _dealt_out(rows: Sequence[PoolRows], num_rows: int) -> list[Tensor] | None:
    """The pools' index lists, if there are rows for each and every row has its pool."""
    lists = [its.index_R for its in rows if its.index_R is not None and its.count]
    return lists if len(lists) == len(rows) and sum(its.count for its in rows) == num_rows else None


def _deal(x_TD: Tensor, rows: Sequence[PoolRows]) -> Sequence[Tensor]:
    """Each pool's rows of x."""
    index_Rs = _dealt_out(rows, len(x_TD)) if torch.is_grad_enabled() else None
    return [_take(x_TD, its) for its in rows] if index_Rs is None else split_rows(x_TD, index_Rs)


def _collect(outputs: Sequence[Tensor], rows: Sequence[PoolRows], x_TD: Tensor) -> Tensor:
    """Each pool's output at its rows; zeros in rows of x that no pool serves."""
    index_Rs = _dealt_out(rows, len(x_TD)) if torch.is_grad_enabled() else None
    if index_Rs is not None:
        return join_rows(outputs, index_Rs)
    out_TD: Tensor | None = None
    for y_RD, its in zip(outputs, rows, strict=True):
        out_TD = _put(out_TD, y_RD, its, x_TD)
    assert out_TD is not None, "a MoE layer has at least one pool"
    return out_TD


def _put(out_TD: Tensor | None, y_RD: Tensor, rows: PoolRows, like_TD: Tensor) -> Tensor | None:
    """Rows of y at their places, added to what the pools before gave. A pool without rows still joins the graph."""
    if rows.index_R is None:
        return y_RD if out_TD is None else y_RD + out_TD
    if not rows.count and not y_RD.requires_grad:
        return out_TD
    out_TD = torch.zeros_like(like_TD) if out_TD is None else out_TD
    return out_TD.index_add(0, rows.index_R, y_RD)
