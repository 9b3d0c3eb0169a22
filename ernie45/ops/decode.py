"""The compiled twins of the ops for steps of few rows on a CPU, where time is reading weights.

Knows nothing about layers or requests. `serves` says whether a step can go this way; the ops beside it are the slow twins.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.ops.native import KINDS, Kernels

MAX_ROWS = 32
WIDE = 1024
"""Below this width a second thread costs more than it brings: the work of one operation is too small to share."""

_KERNELS = Kernels(
    "decode",
    {
        "ernie_linear": "ipipiiip",
        "ernie_ffn": "ipiippiip",
        "ernie_moe": "ipiippippiiip",
        "ernie_route": "piippiifppp",
        "ernie_attention": "ipiiiipppppiipip",
    },
)
_call = _KERNELS.call


def serves(x_RD: Tensor) -> bool:
    """Whether a step with these rows goes through the compiled kernels: few rows, on a CPU, no gradients, compiler found."""
    return (
        0 < x_RD.shape[0] <= MAX_ROWS
        and x_RD.dtype in KINDS
        and x_RD.device.type == "cpu"
        and not torch.is_grad_enabled()
        and _KERNELS.available
    )


def linear(x_RD: Tensor, weight_ND: Tensor) -> Tensor:
    """x W^T: [R, D] -> [R, N], x and W of one dtype."""
    num_rows, size = x_RD.shape
    y_RN = x_RD.new_empty(num_rows, len(weight_ND))
    sizes = (size, len(weight_ND), torch.get_num_threads())
    _call("ernie_linear", KINDS[weight_ND.dtype], _like(x_RD, weight_ND), num_rows, weight_ND, *sizes, y_RN)
    return y_RN


def ffn(x_RD: Tensor, gate_up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """down(silu(gate x) * up x), gate rows first: [R, D] -> [R, D], all of one dtype."""
    num_rows, size = x_RD.shape
    y_RD = torch.empty_like(x_RD, memory_format=torch.contiguous_format)
    weights = (gate_up_FD, down_DF, down_DF.shape[1], torch.get_num_threads())
    _call("ernie_ffn", KINDS[gate_up_FD.dtype], _like(x_RD, gate_up_FD), num_rows, size, *weights, y_RD)
    return y_RD


def _like(x_RD: Tensor, weight: Tensor) -> Tensor:
    assert x_RD.dtype == weight.dtype, (x_RD.dtype, weight.dtype)
    return x_RD.contiguous()


def route(x_RD: Tensor, weight_ED: Tensor, bias_E: Tensor, num_active: int, norm_min: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.moe.route`: logits fp32 [R, E], expert ids int64 [R, A], weights fp32 [R, A]."""
    assert weight_ED.dtype == bias_E.dtype == torch.float32, (weight_ED.dtype, bias_E.dtype)
    num_rows, size = x_RD.shape
    logits_RE = torch.empty(num_rows, len(weight_ED))
    experts_RA = torch.empty(num_rows, num_active, dtype=torch.int64)
    weights_RA = torch.empty(num_rows, num_active)
    shape = (len(weight_ED), num_active)
    _call(
        "ernie_route",
        x_RD.float().contiguous(),
        num_rows,
        size,
        weight_ED,
        bias_E,
        *shape,
        norm_min,
        logits_RE,
        experts_RA,
        weights_RA,
    )
    return logits_RE, experts_RA, weights_RA


def moe_ffn(x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, experts_RA: Tensor, weights_RA: Tensor) -> Tensor:
    """As `ops.moe.moe_ffn`."""
    num_rows, size = x_RD.shape
    y_RD = torch.empty_like(x_RD, memory_format=torch.contiguous_format)
    routing = (experts_RA, weights_RA, experts_RA.shape[1])
    weights = (gate_up_EGD, down_EDF, len(gate_up_EGD), down_EDF.shape[2], torch.get_num_threads())
    _call("ernie_moe", KINDS[gate_up_EGD.dtype], _like(x_RD, gate_up_EGD), num_rows, size, *routing, *weights, y_RD)
    return y_RD


class Places(NamedTuple):
    """Where a decode step of R sequences reads and writes: slots_R of the new tokens, page_table_RN, and each sequence's
    tokens in its pages after the step."""

    slots_R: Tensor
    page_table_RN: Tensor
    lengths: Sequence[int]


def attention(qkv_RW: Tensor, rotations_RK: Tensor, num_heads: int, pages: tuple[Tensor, Tensor], places: Places) -> Tensor:
    """Rope, cache write and attention of one new token for each of R sequences: [R, (H + 2J) K] -> [R, H K].

    rotations complex64 [R, 1, K / 2]; pages: one layer's keys and values, each [N, S, J, K].
    """
    keys_NSJK, values_NSJK = pages
    _, page_size, num_kv_heads, head_dim = keys_NSJK.shape
    num_rows = len(qkv_RW)
    out_RW = qkv_RW.new_empty(num_rows, num_heads * head_dim)
    sizes = (num_rows, num_heads, num_kv_heads, head_dim)
    table_RN = places.page_table_RN
    # The kernel believes them.
    assert qkv_RW.shape[1] == (num_heads + 2 * num_kv_heads) * head_dim, (qkv_RW.shape, sizes)
    assert num_rows == len(rotations_RK) == len(places.slots_R) == len(table_RN), (num_rows, len(rotations_RK), table_RN.shape)
    assert max(places.lengths) <= table_RN.shape[1] * page_size, (places.lengths, table_RN.shape)
    _call(
        "ernie_attention", KINDS[keys_NSJK.dtype], _like(qkv_RW, keys_NSJK), *sizes, rotations_RK.contiguous(), keys_NSJK,
        values_NSJK, places.slots_R, table_RN, table_RN.shape[1], page_size, (ctypes.c_int64 * num_rows)(*places.lengths),
        torch.get_num_threads(), out_RW,
    )  # fmt: skip
    return out_RW
