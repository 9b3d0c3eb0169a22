"""RMS normalisation as ERNIE 4.5 computes it.

Knows nothing about layers or where the result goes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import rowwise
from ernie45.ops.native import KINDS


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * weight over the last axis; any leading axes.

    The mean and the division are fp32 whatever the input; the quotient is rounded to x's dtype before the weight is
    applied, as in Baidu's code, so bf16 results match it. Returns x's shape and dtype.
    """
    if x_TD.dtype == weight_D.dtype and rowwise.serves(x_TD):
        if not torch.is_grad_enabled():
            return _forward(x_TD.contiguous(), weight_D, eps)
        out_TD = _CompiledNorm.apply(x_TD, weight_D, eps)
        assert isinstance(out_TD, Tensor)
        return out_TD
    if x_TD.dtype == torch.float32:
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D, eps)
    return rms_norm_reference(x_TD, weight_D, eps)


def rms_norm_reference(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same, written out."""
    wide_TD = x_TD.float()
    scaled_TD = wide_TD * torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return weight_D * scaled_TD.to(x_TD.dtype)


def _forward(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    size = x_TD.shape[-1]
    y_TD = torch.empty_like(x_TD)
    sizes = (x_TD.numel() // size, size, eps)
    kind = KINDS[x_TD.dtype]
    rowwise.KERNELS.call("ernie_norm_forward", kind, x_TD, weight_D, *sizes, torch.get_num_threads(), y_TD)
    return y_TD


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD = x_TD.contiguous()
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        return _forward(x_TD, weight_D, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD: Tensor):
        x_TD, weight_D = ctx.saved_tensors
        grad_TD, x_grad_TD = grad_TD.contiguous(), torch.empty_like(x_TD)
        size = x_TD.shape[-1]
        # A row for each thread: every one sums its own.
        weight_grads_ND = torch.zeros(torch.get_num_threads(), size)
        inputs = (KINDS[x_TD.dtype], x_TD, weight_D, grad_TD, x_TD.numel() // size, size, ctx.eps)
        outputs = (x_grad_TD, weight_grads_ND)
        rowwise.KERNELS.call("ernie_norm_backward", *inputs, torch.get_num_threads(), *outputs)
        return x_grad_TD, weight_grads_ND.sum(0).to(weight_D.dtype), None
