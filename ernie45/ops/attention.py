"""Attention over packed sequences and over paged keys and values.

Knows nothing about layers, rope or who owns the pages. Sequence borders and lengths are host integers, so nothing here
waits for a device.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def packed_attention(q_THK: Tensor, k_TJK: Tensor, v_TJK: Tensor, cu_seqlens: Sequence[int], causal: bool) -> Tensor:
    """Attention inside each packed sequence, none across. Scale is K ** -0.5.

    q [T, H, K], k and v [T, J, K] with H a multiple of J; cu_seqlens has the borders (0 ... T). Returns [T, H, K].
    Neighbouring sequences of equal length go through one kernel call as a batch.
    """
    if not len(q_THK):
        # Empty but still joined to its inputs, so that every rank's backward runs the same operations.
        return q_THK + 0 * (k_TJK.sum() + v_TJK.sum())
    runs = _runs_of_equal_length(cu_seqlens)
    sizes = [count * length for count, length in runs]
    outputs = []
    # One split, not a slice for each run: a slice's backward pass fills a gradient as long as the whole batch.
    for (_, length), *qkv in zip(runs, *(x.split(sizes) for x in (q_THK, k_TJK, v_TJK)), strict=True):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in qkv)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def packed_attention_reference(q_THK: Tensor, k_TJK: Tensor, v_TJK: Tensor, cu_seqlens: Sequence[int], causal: bool) -> Tensor:
    """The same with one full score matrix, a mask and a softmax, in fp32."""
    num_tokens, num_heads, head_dim = q_THK.shape
    k_THK, v_THK = (x.repeat_interleave(num_heads // x.shape[1], dim=1) for x in (k_TJK, v_TJK))
    lengths = torch.tensor([end - start for start, end in itertools.pairwise(cu_seqlens)])
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(q_THK.device)
    allowed_TT = sequence_T[:, None] == sequence_T[None, :]
    if causal:
        allowed_TT &= torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=q_THK.device).tril()
    scores_HTT = torch.einsum("thk,shk->hts", q_THK.float(), k_THK.float()) * head_dim**-0.5
    weights_HTT = scores_HTT.masked_fill(~allowed_TT, float("-inf")).softmax(-1)
    return torch.einsum("hts,shk->thk", weights_HTT, v_THK.float()).to(q_THK.dtype)


def paged_attention(
    q_THK: Tensor,
    k_NSJK: Tensor,
    v_NSJK: Tensor,
    page_table_BN: Tensor,
    query_starts: Sequence[int],
    context_lens: Sequence[int],
) -> Tensor:
    """Causal attention of new tokens to everything their sequence has in the pages, themselves included.

    q [T, H, K]: new tokens of B sequences, borders in query_starts (0 ... T). k, v [N, S, J, K]: all pages.
    page_table_BN: the pages of each sequence in order, rows padded with any valid page. context_lens[b]: tokens of
    sequence b in its pages after this step. The last new token of b sits at context_lens[b] - 1. Returns [T, H, K].
    """
    lengths = [end - start for start, end in itertools.pairwise(query_starts)]
    if lengths and max(lengths) == 1 and min(lengths) == 1:
        return _paged_decode(q_THK, k_NSJK, v_NSJK, page_table_BN, context_lens)
    page_size = k_NSJK.shape[1]
    outputs = []
    for index, (start, length, context) in enumerate(zip(query_starts, lengths, context_lens, strict=False)):
        if not length:
            continue
        pages = page_table_BN[index, : -(-context // page_size)]
        k_MJK, v_MJK = (x[pages].flatten(0, 1)[:context] for x in (k_NSJK, v_NSJK))
        outputs.append(_suffix_attention(q_THK[start : start + length], k_MJK, v_MJK))
    return torch.cat(outputs) if outputs else q_THK


def _suffix_attention(q_THK: Tensor, k_MJK: Tensor, v_MJK: Tensor) -> Tensor:
    """Causal attention where the T queries are the last T of M positions."""
    num_new, num_all = len(q_THK), len(k_MJK)
    mask = None
    if 1 < num_new < num_all:
        mask = torch.ones(num_new, num_all, dtype=torch.bool, device=q_THK.device).tril(num_all - num_new)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THK, k_MJK, v_MJK))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=num_new == num_all and num_new > 1, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def _paged_decode(q_BHK: Tensor, k_NSJK: Tensor, v_NSJK: Tensor, page_table_BN: Tensor, context_lens: Sequence[int]) -> Tensor:
    """One new token for each of B sequences: gather their pages side by side and mask what lies past each end."""
    page_size, num_kv_heads = k_NSJK.shape[1:3]
    longest = max(context_lens)
    table_BN = page_table_BN[:, : -(-longest // page_size)]
    pages = table_BN.flatten()
    k_BMJK, v_BMJK = (x.index_select(0, pages).view(len(table_BN), -1, *x.shape[2:])[:, :longest] for x in (k_NSJK, v_NSJK))
    mask = None
    if min(context_lens) < longest:
        ends_B1 = torch.tensor(context_lens, device=q_BHK.device)[:, None]
        mask = (torch.arange(longest, device=q_BHK.device) < ends_B1)[:, None, None, :]
    # The query heads that share a KV head become rows of one product, so the gathered keys are read once.
    q_BJGK = q_BHK.unflatten(1, (num_kv_heads, -1))
    k, v = k_BMJK.transpose(1, 2), v_BMJK.transpose(1, 2)
    return F.scaled_dot_product_attention(q_BJGK, k, v, attn_mask=mask).flatten(1, 2)


def _runs_of_equal_length(cu_seqlens: Sequence[int]) -> list[tuple[int, int]]:
    """Group neighbouring sequences of one length: (count, length); empty sequences are left out."""
    lengths = [end - start for start, end in itertools.pairwise(cu_seqlens) if end > start]
    return [(len(list(run)), length) for length, run in itertools.groupby(lengths)]
