"""Routing and the grouped feed-forward of one expert pool: a grouped-matmul path and a loop as its slow twin.

Knows nothing about modalities, layers or other ranks.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import decode
from ernie45.ops.feed_forward import experts_ffn
from ernie45.ops.feed_forward import serves as serves_experts
from ernie45.ops.matmul import linear
from ernie45.ops.swiglu import swiglu

FEW_ROWS = 128
"""Up to this many (row, expert) pairs a CPU without gradients visits only the experts that are used: a grouped matmul
visits all of them, and at decode most have no row."""


class Routing(NamedTuple):
    """What a router decided for R rows.

    logits_RE: fp32, with gradient. experts_RA: chosen expert ids. weights_RA: their mixing weights, fp32, sum 1 per row.
    """

    logits_RE: Tensor
    experts_RA: Tensor
    weights_RA: Tensor


def route(
    x_RD: Tensor, weight_ED: Tensor, bias_E: Tensor, num_active: int, norm_min: float, replay_RA: Tensor | None = None
) -> Routing:
    """Top-k routing: softmax in fp32; the correction bias takes part in the selection only.

    p = softmax(x W^T); chosen = top-k of (p + bias); weights = p[chosen] / max(sum p[chosen], norm_min).
    replay_RA: int16, experts to choose instead, of which the first A count; a row that begins with -1 chooses by itself. The
    weights are this router's own (rollout routing replay, R3: Ma et al., Stabilizing MoE RL by Aligning the Training and
    Inference Routers, 2025).
    """
    if replay_RA is None and decode.serves(x_RD):
        return Routing(*decode.route(x_RD, weight_ED, bias_E, num_active, norm_min))
    with torch.autocast(x_RD.device.type, enabled=False):
        logits_RE = linear(x_RD.float(), weight_ED)
        probabilities_RE = logits_RE.softmax(-1)
        experts_RA = (probabilities_RE.detach() + bias_E).topk(num_active, dim=-1).indices
        if replay_RA is not None:
            given_RA = replay_RA[:, :num_active].to(experts_RA)
            experts_RA = torch.where(given_RA[:, :1] >= 0, given_RA, experts_RA)
        chosen_RA = probabilities_RE.gather(-1, experts_RA)
        weights_RA = chosen_RA / chosen_RA.sum(-1, keepdim=True).clamp_min(norm_min)
    return Routing(logits_RE, experts_RA, weights_RA)


def count_experts(experts_RA: Tensor, num_experts: int) -> Tensor:
    """Rows sent to each expert, int64 [E]. No host synchronisation, unlike bincount on a GPU."""
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=experts_RA.device)
    flat = experts_RA.flatten()
    return counts_E.scatter_add_(0, flat, torch.ones_like(flat))


def moe_ffn(
    x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, experts_RA: Tensor, weights_RA: Tensor, counts_E: Tensor
) -> Tensor:
    """Sum over the chosen experts of weight * down(silu(gate x) * up x). Zero rows are allowed.

    gate_up_EGD [E, 2F, D] has the gate rows first; down_EDF [E, D, F]. Returns [R, D] in x's dtype.

    Rows are sorted by expert so that each expert's rows are one block of a grouped matmul. The mixing weight is applied
    before the down projection (as in Baidu's training code): the combination is then a plain sum.
    """
    num_rows, num_active = experts_RA.shape
    if decode.serves(x_RD):
        return decode.moe_ffn(x_RD, gate_up_EGD, down_EDF, experts_RA, weights_RA)
    if x_RD.device.type == "cpu" and not torch.is_grad_enabled() and experts_RA.numel() <= FEW_ROWS:
        return _moe_ffn_few_rows(x_RD, gate_up_EGD, down_EDF, experts_RA, weights_RA)
    if serves_experts(x_RD, gate_up_EGD, down_EDF, experts_RA.numel()):
        return experts_ffn(x_RD, gate_up_EGD, down_EDF, experts_RA, weights_RA, counts_E)
    order_S = experts_RA.flatten().argsort(stable=True)
    offsets_E = counts_E.cumsum(0, dtype=torch.int32)
    # Row s of the sorted block is copy order_S[s] of token order_S[s] // A.
    x_SD = x_RD.index_select(0, order_S.div(num_active, rounding_mode="floor"))
    gate_up_SG = F.grouped_mm(x_SD, gate_up_EGD.transpose(1, 2), offs=offsets_E)
    hidden_SF = swiglu(gate_up_SG, weights_RA.flatten().index_select(0, order_S))
    y_SD = F.grouped_mm(hidden_SF, down_EDF.transpose(1, 2), offs=offsets_E)
    back_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return y_SD.index_select(0, back_S).unflatten(0, (num_rows, num_active)).sum(1)


def _moe_ffn_few_rows(x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, experts_RA: Tensor, weights_RA: Tensor) -> Tensor:
    """The same on the host's own list of experts; no copy of weights, one product for each used expert."""
    num_rows, num_active = experts_RA.shape
    experts = experts_RA.flatten().tolist()
    order = sorted(range(len(experts)), key=experts.__getitem__)
    order_S = torch.tensor(order, dtype=torch.int64)
    x_SD = x_RD.index_select(0, order_S // num_active)
    # Borders of the runs of one expert in the sorted list.
    borders = [s for s in range(len(order)) if s == 0 or experts[order[s]] != experts[order[s - 1]]] + [len(order)]
    runs = [(start, end, experts[order[start]]) for start, end in itertools.pairwise(borders)]
    gate_up_SG = x_SD.new_empty(len(order), gate_up_EGD.shape[1])
    for start, end, expert in runs:
        torch.mm(x_SD[start:end], gate_up_EGD[expert].T, out=gate_up_SG[start:end])
    hidden_SF = swiglu(gate_up_SG, weights_RA.flatten().index_select(0, order_S))
    y_SD = torch.empty_like(x_SD)
    for start, end, expert in runs:
        torch.mm(hidden_SF[start:end], down_EDF[expert].T, out=y_SD[start:end])
    back_SD = torch.empty_like(y_SD).index_copy_(0, order_S, y_SD)
    return back_SD.unflatten(0, (num_rows, num_active)).sum(1)


def moe_ffn_reference(
    x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, experts_RA: Tensor, weights_RA: Tensor, counts_E: Tensor
) -> Tensor:
    """The same, expert by expert."""
    y_RD = torch.zeros_like(x_RD)
    for expert in range(len(gate_up_EGD)):
        rows, slots = (experts_RA == expert).nonzero(as_tuple=True)
        assert len(rows) == counts_E[expert], (expert, len(rows), counts_E)
        gate, up = F.linear(x_RD[rows], gate_up_EGD[expert]).chunk(2, dim=-1)
        weighted = F.linear(F.silu(gate) * up, down_EDF[expert]) * weights_RA[rows, slots, None].to(x_RD.dtype)
        y_RD = y_RD.index_add(0, rows, weighted)
    return y_RD
