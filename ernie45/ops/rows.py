"""Rows of a matrix dealt out to several receivers and put together again, one pass through memory each way.

Knows nothing about who receives them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_rows(x_TD: Tensor, index_Rs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows of each index list. Together the lists, int64, must name every row exactly once; the counts are checked.

    index_select does the same; its backward pass fills a matrix with zeros for each list and adds them all up.
    """
    assert sum(map(len, index_Rs)) == len(x_TD), (list(map(len, index_Rs)), len(x_TD))
    return _Split.apply(x_TD, *index_Rs)  # type: ignore[return-value]


def join_rows(parts: Sequence[Tensor], index_Rs: Sequence[Tensor]) -> Tensor:
    """The inverse of `split_rows`: row index[r] of the result is row r of the list's part."""
    out_TD = _Join.apply(len(parts), *parts, *index_Rs)
    assert isinstance(out_TD, Tensor)
    return out_TD


def _put_together(parts: Sequence[Tensor], index_Rs: Sequence[Tensor]) -> Tensor:
    out_TD = parts[0].new_empty(sum(map(len, index_Rs)), *parts[0].shape[1:])
    for part, index_R in zip(parts, index_Rs, strict=True):
        out_TD.index_copy_(0, index_R, part)
    return out_TD


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, *index_Rs: Tensor):
        ctx.save_for_backward(*index_Rs)
        return tuple(x_TD.index_select(0, index_R) for index_R in index_Rs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):
        return _put_together(grads, ctx.saved_tensors), *(None for _ in grads)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, count: int, *tensors: Tensor):
        ctx.save_for_backward(*tensors[count:])
        return _put_together(tensors[:count], tensors[count:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD: Tensor):
        indices = ctx.saved_tensors  # read once: a recomputed block gives its tensors a single time
        return None, *(grad_TD.index_select(0, index_R) for index_R in indices), *(None for _ in indices)
