"""Low-rank additions to projections, y = W x + B (A x), and to the stacked experts of a pool.

Knows nothing about adapters' files, requests or training. W + B A is never formed. Source: Hu et al., LoRA (2021).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops.swiglu import swiglu

# A grouped matmul wants rows of whole 16 bytes: 8 numbers of bf16, 4 of fp32.
RANK_STEP = 8


class LowRank(NamedTuple):
    """What is added to one projection, B A: a_LD [rank, D], b_NL [N, rank] with the scale inside.

    A fused projection (q | k | v, gate | up) has the ranks of its parts one after the other; B is then zero outside each
    part's own rows and ranks. For a stack of experts both have a first dimension E, and the rank is a multiple of 8.
    """

    a_LD: Tensor
    b_NL: Tensor


class Dropout(NamedTuple):
    """Share of A's inputs that is set to zero in training, and the seed: without state, so a step computed twice is equal."""

    share: float
    seed: int

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """x with some numbers zero and the others scaled up. place: number of the projection, each drops others."""
        generator = torch.Generator(x.device).manual_seed((self.seed * 1_000_003 + place) % 2**63)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.share
        return x * kept.to(x.dtype) / (1 - self.share)


class ExpertAdapter(NamedTuple):
    """What one adapter adds to a pool of experts. rows_R: bool, the rows it serves; None: all.

    dropout: of the inputs of gate_up and down, or None; places: their numbers for it.
    """

    gate_up: LowRank | None
    down: LowRank | None
    rows_R: Tensor | None = None
    dropout: Dropout | None = None
    places: tuple[int, int] = (0, 0)


class Routed(NamedTuple):
    """Where a pool's rows go: experts_RA int64, weights_RA fp32, counts_E int64, as in `ops.moe.moe_ffn`."""

    experts_RA: Tensor
    weights_RA: Tensor
    counts_E: Tensor


def add_product(y_TN: Tensor, x_TD: Tensor, pair: LowRank, index_R: Tensor | None = None) -> Tensor:
    """y + B (A x), on the rows `index_R` only if given. y may be written to where no gradient is wanted."""
    a_DL, b_LN = pair.a_LD.to(x_TD.dtype).T, pair.b_NL.to(x_TD.dtype).T
    if index_R is not None:
        return y_TN.index_add(0, index_R, x_TD.index_select(0, index_R) @ a_DL @ b_LN)
    if torch.is_grad_enabled():
        return torch.addmm(y_TN, x_TD @ a_DL, b_LN)
    return y_TN.addmm_(x_TD @ a_DL, b_LN)


def fuse(parts: Sequence[tuple[int, LowRank]], num_rows: int) -> LowRank:
    """One pair for a fused projection of `num_rows` outputs; parts: (first row, pair). Differentiable."""
    if len(parts) == 1 and len(parts[0][1].b_NL) == num_rows:
        return parts[0][1]
    columns = [F.pad(pair.b_NL, (0, 0, start, num_rows - start - len(pair.b_NL))) for start, pair in parts]
    return LowRank(torch.cat([pair.a_LD for _, pair in parts]), torch.cat(columns, dim=1))


def pad_rank(pair: LowRank) -> LowRank:
    """A stack's pair with zeros up to a rank that a grouped matmul takes."""
    missing = -pair.a_LD.shape[-2] % RANK_STEP
    if not missing:
        return pair
    return LowRank(F.pad(pair.a_LD, (0, 0, 0, missing)), F.pad(pair.b_NL, (0, missing)))


def moe_ffn_adapted(
    x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, routed: Routed, adapters: Sequence[ExpertAdapter]
) -> Tensor:
    """`ops.moe.moe_ffn` with what adapters add to each expert's two projections."""
    num_rows, num_active = routed.experts_RA.shape
    order_S = routed.experts_RA.flatten().argsort(stable=True)
    row_S = order_S.div(num_active, rounding_mode="floor")
    x_SD = x_RD.index_select(0, row_S)
    groups = [_rows_of(adapter, routed, order_S, row_S) for adapter in adapters]
    offsets_E = routed.counts_E.cumsum(0, dtype=torch.int32)
    y_SG = F.grouped_mm(x_SD, gate_up_EGD.transpose(1, 2), offs=offsets_E)
    for adapter, group in zip(adapters, groups, strict=True):
        y_SG = _add_grouped(y_SG, x_SD, adapter.gate_up, group, adapter.dropout, adapter.places[0])
    hidden_SF = swiglu(y_SG, routed.weights_RA.flatten().index_select(0, order_S))
    y_SD = F.grouped_mm(hidden_SF, down_EDF.transpose(1, 2), offs=offsets_E)
    for adapter, group in zip(adapters, groups, strict=True):
        y_SD = _add_grouped(y_SD, hidden_SF, adapter.down, group, adapter.dropout, adapter.places[1])
    back_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return y_SD.index_select(0, back_S).unflatten(0, (num_rows, num_active)).sum(1)


class _Group(NamedTuple):
    """Sorted rows that an adapter serves (None: all), and where each expert's end among them."""

    index: Tensor | None
    offsets_E: Tensor


def _rows_of(adapter: ExpertAdapter, routed: Routed, order_S: Tensor, row_S: Tensor) -> _Group:
    if adapter.rows_R is None:
        return _Group(None, routed.counts_E.cumsum(0, dtype=torch.int32))
    index = adapter.rows_R.index_select(0, row_S).nonzero()[:, 0]
    experts = routed.experts_RA.flatten().index_select(0, order_S).index_select(0, index)
    counts_E = torch.zeros_like(routed.counts_E).scatter_add_(0, experts, torch.ones_like(experts))
    return _Group(index, counts_E.cumsum(0, dtype=torch.int32))


def _add_grouped(
    y_SN: Tensor, x_SD: Tensor, pair: LowRank | None, group: _Group, dropout: Dropout | None, place: int
) -> Tensor:
    if pair is None:
        return y_SN
    x = x_SD if group.index is None else x_SD.index_select(0, group.index)
    x = x if dropout is None else dropout(x, place)
    a_EDL, b_ELN = pair.a_LD.to(x.dtype).transpose(1, 2), pair.b_NL.to(x.dtype).transpose(1, 2)
    added = F.grouped_mm(F.grouped_mm(x, a_EDL, offs=group.offsets_E), b_ELN, offs=group.offsets_E)
    return y_SN + added if group.index is None else y_SN.index_add(0, group.index, added)
