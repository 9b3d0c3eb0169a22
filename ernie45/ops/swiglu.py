"""SwiGLU of a fused gate and up projection.

Knows nothing about experts or layers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import rowwise
from ernie45.ops.native import KINDS


def swiglu(gate_up_RG: Tensor, scale_R: Tensor | None = None) -> Tensor:
    """silu(gate) * up * scale: [R, 2F], gate columns first, -> [R, F] in the same dtype.

    scale_R: fp32 factor of each row, with gradient; None: 1. fp32 inside on a CPU, where one pass does it all.
    """
    assert scale_R is None or scale_R.dtype == torch.float32, scale_R.dtype
    if rowwise.serves(gate_up_RG):
        if not torch.is_grad_enabled():
            return _forward(gate_up_RG.contiguous(), scale_R)
        out_RF = _CompiledSwiglu.apply(gate_up_RG, scale_R)
        assert isinstance(out_RF, Tensor)
        return out_RF
    return swiglu_reference(gate_up_RG, scale_R)


def swiglu_reference(gate_up_RG: Tensor, scale_R: Tensor | None = None) -> Tensor:
    """The same with torch's operations."""
    gate_RF, up_RF = gate_up_RG.chunk(2, dim=-1)
    hidden_RF = F.silu(gate_RF) * up_RF
    return hidden_RF if scale_R is None else hidden_RF * scale_R.to(hidden_RF.dtype)[:, None]


def _forward(gate_up_RG: Tensor, scale_R: Tensor | None) -> Tensor:
    num_rows, size = gate_up_RG.shape[0], gate_up_RG.shape[1] // 2
    y_RF = gate_up_RG.new_empty(num_rows, size)
    inputs = (KINDS[gate_up_RG.dtype], gate_up_RG, scale_R, num_rows, size)
    rowwise.KERNELS.call("ernie_swiglu_forward", *inputs, torch.get_num_threads(), y_RF)
    return y_RF


class _CompiledSwiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up_RG: Tensor, scale_R: Tensor | None) -> Tensor:
        gate_up_RG = gate_up_RG.contiguous()
        scale_R = None if scale_R is None else scale_R.contiguous()
        ctx.save_for_backward(gate_up_RG, scale_R)
        return _forward(gate_up_RG, scale_R)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_RF: Tensor):
        gate_up_RG, scale_R = ctx.saved_tensors
        grad_RF, gate_up_grad_RG = grad_RF.contiguous(), torch.empty_like(gate_up_RG)
        scale_grad_R = None if scale_R is None else torch.empty_like(scale_R)
        inputs = (KINDS[gate_up_RG.dtype], gate_up_RG, scale_R, grad_RF, *grad_RF.shape)
        outputs = (gate_up_grad_RG, scale_grad_R)
        rowwise.KERNELS.call("ernie_swiglu_backward", *inputs, torch.get_num_threads(), *outputs)
        return gate_up_grad_RG, scale_grad_R
