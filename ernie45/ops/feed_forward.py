"""Feed-forwards in training, forwards and backwards in one kernel each, on a CPU: a plain one and one pool of experts.

Knows nothing about routers, modalities or layers. Slow twins: `feed_forward_reference`, `ops.moe.moe_ffn_reference`.

The kernels go through groups of rows: an expert's share, or a run of rows. Gathered rows, hidden states and gradients between
the products are as long as one group and stay in a cache; only the gate and up projections are kept for the backward pass.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import matmul
from ernie45.ops.swiglu import swiglu, swiglu_reference

RUN = 512
"""Rows that a plain feed-forward takes at a time."""


def serves(x: Tensor, gate_up: Tensor, down: Tensor, num_rows: int) -> bool:
    """Whether the kernels take these: as for other products, with gradients wanted and rows enough."""
    return torch.is_grad_enabled() and num_rows >= matmul.FEW_ROWS and matmul.serves(x, gate_up, down)


def feed_forward(x_TD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """down(silu(gate x) * up x): [T, D] -> [T, D]; gate_up [2F, D] has the gate rows first, down is [D, F]."""
    if not serves(x_TD, gate_up_GD, down_DF, len(x_TD)):
        return matmul.linear(swiglu(matmul.linear(x_TD, gate_up_GD)), down_DF)
    out_TD = _FeedForward.apply(x_TD, gate_up_GD, down_DF)
    assert isinstance(out_TD, Tensor)
    return out_TD


def feed_forward_reference(x_TD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """The same with torch's operations."""
    return F.linear(swiglu_reference(F.linear(x_TD, gate_up_GD)), down_DF)


def experts_ffn(
    x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, experts_RA: Tensor, weights_RA: Tensor, counts_E: Tensor
) -> Tensor:
    """As `ops.moe.moe_ffn`, for what `serves`."""
    out_RD = _Experts.apply(x_RD, gate_up_EGD, down_EDF, weights_RA, (experts_RA, counts_E))
    assert isinstance(out_RD, Tensor)
    return out_RD


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
        x_TD, gate_up_GD, down_DF = x_TD.contiguous(), gate_up_GD.contiguous(), down_DF.contiguous()
        (num_rows, size), width = x_TD.shape, len(gate_up_GD)
        # The kernel believes them.
        assert gate_up_GD.shape == (width, size), (gate_up_GD.shape, x_TD.shape)
        assert down_DF.shape == (size, width // 2), (down_DF.shape, gate_up_GD.shape)
        ends = torch.tensor([*range(RUN, num_rows, RUN), num_rows])
        # No copies of rows, no scales, shared weights.
        ctx.arguments = (None, ends, None, len(ends), size, width // 2, 1, torch.get_num_threads())
        gate_up_TG = x_TD.new_empty(num_rows, width)
        out_TD = torch.empty_like(x_TD)
        matmul.KERNELS.call("ernie_ffn_forward", x_TD, gate_up_GD, down_DF, *ctx.arguments, gate_up_TG, out_TD)
        ctx.save_for_backward(x_TD, gate_up_GD, down_DF, gate_up_TG)
        return out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD: Tensor):
        x_TD, gate_up_GD, down_DF, gate_up_TG = ctx.saved_tensors
        wants_x, *wants_weights = ctx.needs_input_grad
        x_grad_TD = torch.empty_like(x_TD) if wants_x else None
        parts = ctx.arguments[-1]
        make = torch.zeros if parts > 1 else torch.empty
        weight_grads = [
            make(parts, *weight.shape) if wanted else None
            for weight, wanted in zip((gate_up_GD, down_DF), wants_weights, strict=True)
        ]
        inputs = (x_TD, gate_up_GD, down_DF, *ctx.arguments, gate_up_TG, grad_TD.contiguous())
        matmul.KERNELS.call("ernie_ffn_backward", *inputs, x_grad_TD, *weight_grads, None)
        return x_grad_TD, *(grad if grad is None else grad[0] if parts == 1 else grad.sum(0) for grad in weight_grads)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, weights_RA: Tensor, routed: tuple[Tensor, Tensor]):
        experts_RA, counts_E = routed
        (num_experts, width, size), (num_rows, num_active) = gate_up_EGD.shape, experts_RA.shape
        x_RD, gate_up_EGD, down_EDF = x_RD.contiguous(), gate_up_EGD.contiguous(), down_EDF.contiguous()
        # Copy s of the sorted ones is copy order_S[s] of all, and of row order_S[s] // A.
        order_S = experts_RA.flatten().argsort(stable=True)
        token_S, ends_E = order_S // num_active, counts_E.cumsum(0)
        # The kernels believe them.
        assert x_RD.shape == (num_rows, size), (x_RD.shape, experts_RA.shape)
        assert down_EDF.shape == (num_experts, size, width // 2), (gate_up_EGD.shape, down_EDF.shape)
        assert weights_RA.dtype == torch.float32, weights_RA.dtype
        assert counts_E.shape == (num_experts,), (counts_E.shape, num_experts)
        assert ends_E[-1] == len(order_S), (counts_E, len(order_S))
        scale_S = weights_RA.flatten().index_select(0, order_S)
        place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S)))
        gate_up_SG, y_SD = x_RD.new_empty(len(order_S), width), x_RD.new_empty(len(order_S), size)
        inputs = (x_RD, gate_up_EGD, down_EDF, token_S, ends_E, scale_S)
        ctx.sizes = (num_experts, size, width // 2, 0, torch.get_num_threads())
        ctx.shape = (num_rows, num_active)
        matmul.KERNELS.call("ernie_ffn_forward", *inputs, *ctx.sizes, gate_up_SG, y_SD)
        ctx.save_for_backward(*inputs, gate_up_SG, place_S)
        return _combine(y_SD, place_S, ctx.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_RD: Tensor):
        *inputs, gate_up_SG, place_S = ctx.saved_tensors
        x_RD, gate_up_EGD, down_EDF, *_ = inputs
        wants_x, wants_gate_up, wants_down, wants_weights, _ = ctx.needs_input_grad
        x_grad_SD = x_RD.new_empty(len(place_S), x_RD.shape[1]) if wants_x else None
        gate_up_grad_EGD = torch.empty_like(gate_up_EGD) if wants_gate_up else None
        down_grad_EDF = torch.empty_like(down_EDF) if wants_down else None
        scale_grad_S = x_RD.new_empty(len(place_S)) if wants_weights else None
        gradients = (x_grad_SD, gate_up_grad_EGD, down_grad_EDF, scale_grad_S)
        matmul.KERNELS.call("ernie_ffn_backward", *inputs, *ctx.sizes, gate_up_SG, grad_RD.contiguous(), *gradients)
        x_grad_RD = None if x_grad_SD is None else _combine(x_grad_SD, place_S, ctx.shape)
        weights_grad_RA = None if scale_grad_S is None else scale_grad_S.index_select(0, place_S).view(ctx.shape)
        return x_grad_RD, gate_up_grad_EGD, down_grad_EDF, weights_grad_RA, None


def _combine(y_SD: Tensor, place_S: Tensor, shape: tuple[int, int]) -> Tensor:
    """The copies of each row, added up."""
    out_RD = y_SD.new_empty(shape[0], y_SD.shape[1])
    matmul.KERNELS.call("ernie_ffn_combine", y_SD, place_S, *shape, y_SD.shape[1], torch.get_num_threads(), out_RD)
    return out_RD
