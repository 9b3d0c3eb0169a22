"""Rope and self-attention of packed sequences straight from the fused projection, with a compiled path for training on a CPU.

Knows nothing about layers, caches or how positions were made.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.ops.attention import packed_attention, paged_attention
from ernie45.ops.native import KINDS, Kernels
from ernie45.ops.rope import rotate_interleaved

_KERNELS = Kernels(
    "attention",
    {
        "ernie_attention_forward": "ippiiipiiipp",
        "ernie_attention_backward": "ippiiipiiipppp",
        "ernie_attention_paged": "ipppiiipppiiiip",
    },
)

# An operator of torch's, so that what decides about recomputation can see it and keep its results.
_OPERATORS = torch.library.Library("ernie45", "FRAGMENT")
_OPERATORS.define("attention_forward(Tensor qkv, Tensor rotations, int[] heads, int[] cu_seqlens) -> (Tensor, Tensor)")


class Heads(NamedTuple):
    """Query heads H and KV heads J of a projection with rows q | k | v, (H + 2 J) K wide."""

    num_heads: int
    num_kv_heads: int


def self_attention(qkv_TW: Tensor, rotations: Tensor, heads: Heads, cu_seqlens: Sequence[int]) -> Tensor:
    """Causal attention inside each packed sequence: [T, (H + 2 J) K] -> [T, H K].

    rotations: the decoder's rope table, complex64 [T, 1, K / 2]. cu_seqlens: borders 0 ... T.

    On a CPU one kernel does all of it, forwards and backwards: queries and keys are turned as they are read, scores exist a
    tile at a time, and the gradient is written where the projection wants it. Elsewhere torch's kernels do.
    """
    compiles = len(qkv_TW) and qkv_TW.device.type == "cpu" and qkv_TW.dtype in KINDS and not torch.compiler.is_compiling()
    if compiles and _KERNELS.available:
        out_TW = _CompiledSelfAttention.apply(qkv_TW, rotations, heads, cu_seqlens)
        assert isinstance(out_TW, Tensor)
        return out_TW
    return self_attention_reference(qkv_TW, rotations, heads, cu_seqlens)


def self_attention_reference(qkv_TW: Tensor, rotations: Tensor, heads: Heads, cu_seqlens: Sequence[int]) -> Tensor:
    """The same by rotation and packed attention; in bf16 it rounds the turned queries and keys, which the kernel does not."""
    q_THK, k_TJK, v_TJK = rotated(qkv_TW, rotations, heads)
    return packed_attention(q_THK, k_TJK, v_TJK, cu_seqlens, causal=True).flatten(1)


def attend_pages(
    q_THK: Tensor,
    pages: tuple[Tensor, Tensor],
    page_table_BN: Tensor,
    query_starts: Sequence[int],
    context_lens: Sequence[int],
) -> Tensor:
    """As `ops.attention.paged_attention`, pages being keys and values, each [N, S, J, K]; no gradients.

    On a CPU a chunk behind others reads its pages where they are, a tile at a time; torch's kernels want all of them copied
    side by side for every chunk. A prompt from its beginning has nothing to copy, and goes to torch.
    """
    starts = list(query_starts)
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    behind_others = any(length < context for length, context in zip(lengths, context_lens, strict=True))
    serves = q_THK.device.type == "cpu" and q_THK.dtype in KINDS and not torch.is_grad_enabled()
    if not (behind_others and serves and _KERNELS.available):
        return paged_attention(q_THK, *pages, page_table_BN, query_starts, context_lens)
    keys_NSJK, values_NSJK = pages
    _, page_size, num_kv_heads, head_dim = keys_NSJK.shape
    num_pages = page_table_BN.shape[1]
    assert q_THK.dtype == keys_NSJK.dtype == values_NSJK.dtype, (q_THK.dtype, keys_NSJK.dtype)
    assert page_table_BN.dtype == torch.int64, page_table_BN.dtype
    assert max(context_lens) <= num_pages * page_size, (context_lens, page_table_BN.shape)
    q_THK, borders, contexts = q_THK.contiguous(), torch.tensor(starts), torch.tensor(context_lens)
    out_THK = torch.empty_like(q_THK)
    heads = (q_THK.shape[1], num_kv_heads, head_dim)
    sizes = (len(lengths), num_pages, page_size, torch.get_num_threads())
    tables = (borders, contexts, page_table_BN.contiguous())
    _KERNELS.call("ernie_attention_paged", KINDS[q_THK.dtype], q_THK, *pages, *heads, *tables, *sizes, out_THK)
    return out_THK


def rotated(qkv_TW: Tensor, rotations: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, H, K] and keys [T, J, K], turned, and values [T, J, K]. Both turn by the same angles, so in one go."""
    num_heads, num_kv_heads = heads
    qkv = qkv_TW.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    qk, v_TJK = qkv.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    q_THK, k_TJK = rotate_interleaved(qk, rotations).split((num_heads, num_kv_heads), dim=1)
    return q_THK, k_TJK, v_TJK


def _sizes(heads: Sequence[int], head_dim: int, cu_seqlens: Sequence[int]) -> tuple:
    """What the kernels take behind the tensors."""
    return (*heads, head_dim, torch.tensor(cu_seqlens), len(cu_seqlens) - 1, 1, torch.get_num_threads())


def _forward(qkv_TW: Tensor, rotations: Tensor, heads: Sequence[int], cu_seqlens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attention [T, H K] and the logarithms of its sums [T, H]."""
    num_heads, num_kv_heads = heads
    num_tokens, head_dim = len(qkv_TW), 2 * rotations.shape[-1]
    # The kernel believes them.
    assert cu_seqlens[0] == 0, cu_seqlens
    assert cu_seqlens[-1] == num_tokens == len(rotations), (cu_seqlens, num_tokens, len(rotations))
    assert all(start <= end for start, end in itertools.pairwise(cu_seqlens)), cu_seqlens
    assert qkv_TW.shape[1] == (num_heads + 2 * num_kv_heads) * head_dim, (qkv_TW.shape, heads, head_dim)
    out_TW = qkv_TW.new_empty(num_tokens, num_heads * head_dim)
    logsums_TH = torch.empty(num_tokens, num_heads)
    sizes = _sizes(heads, head_dim, cu_seqlens)
    _KERNELS.call("ernie_attention_forward", KINDS[qkv_TW.dtype], qkv_TW, rotations, *sizes, out_TW, logsums_TH)
    return out_TW, logsums_TH


_OPERATORS.impl("attention_forward", _forward, "CPU")


class _CompiledSelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_TW: Tensor, rotations: Tensor, heads: Heads, cu_seqlens: Sequence[int]) -> Tensor:
        qkv_TW, rotations = qkv_TW.contiguous(), rotations.contiguous()
        out_TW, logsums_TH = torch.ops.ernie45.attention_forward(qkv_TW, rotations, heads, cu_seqlens)
        ctx.save_for_backward(qkv_TW, rotations, out_TW, logsums_TH)
        ctx.sizes = _sizes(heads, 2 * rotations.shape[-1], cu_seqlens)
        return out_TW

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, out_grad_TW: Tensor):
        qkv_TW, rotations, out_TW, logsums_TH = ctx.saved_tensors
        out_grad_TW = out_grad_TW.contiguous()
        qkv_grad_TW = torch.empty_like(qkv_TW)
        kind, gradients = KINDS[qkv_TW.dtype], (out_TW, logsums_TH, out_grad_TW, qkv_grad_TW)
        _KERNELS.call("ernie_attention_backward", kind, qkv_TW, rotations, *ctx.sizes, *gradients)
        return qkv_grad_TW, None, None, None
