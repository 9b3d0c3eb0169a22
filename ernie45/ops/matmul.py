"""Matrix products of a training step in fp32 through kernels of our own where they are faster.

Knows nothing about layers, experts or optimisers.

On a CPU with AVX-512 the kernels reach nine tenths of what the vector units can do, torch's library eight; everywhere else,
in other dtypes, without gradients and for few rows torch does the work.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import Parameter

from ernie45.ops.native import Kernels

KERNELS = Kernels(
    "matmul",
    {
        "ernie_matmul": "piipiiiiiiipi",
        "ernie_ffn_forward": "ppppppiiiiipp",
        "ernie_ffn_backward": "ppppppiiiiipppppp",
        "ernie_ffn_combine": "ppiiiip",
    },
)

FEW_ROWS = 64
"""Below this many rows packing the weights and one more Python frame cost as much as is won."""


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these: on a CPU with AVX-512 and a compiler, fp32, no autocast, torch not tracing."""
    return (
        all(type(x) in (Tensor, Parameter) and x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and KERNELS.available
    )


def product(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, add: bool = False) -> Tensor:
    """out = a b, or out += a b; without gradient. a and b may be transposed views; out has whole rows. M, N, K may be 0."""
    (m, k), (inner, n) = a_MK.shape, b_KN.shape
    assert inner == k, (a_MK.shape, b_KN.shape)
    assert out_MN.shape == (m, n), (out_MN.shape, m, n)
    if not serves(a_MK, b_KN, out_MN) or out_MN.stride(1) != 1:
        return torch.addmm(out_MN, a_MK, b_KN, out=out_MN) if add else torch.mm(a_MK, b_KN, out=out_MN)
    left = (a_MK.data_ptr(), *a_MK.stride())
    right = (b_KN.data_ptr(), *b_KN.stride())
    sizes = (m, n, k, int(add), torch.get_num_threads())
    KERNELS.call("ernie_matmul", *left, *right, *sizes, out_MN.data_ptr(), out_MN.stride(0))
    return out_MN


def linear(x: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x weight^T + bias: [..., D] -> [..., N], as torch's F.linear, which is its slow twin."""
    if not torch.is_grad_enabled() or x.shape[:-1].numel() < FEW_ROWS or not serves(x, weight_ND):
        return F.linear(x, weight_ND, bias_N)
    out = _Linear.apply(x.flatten(0, -2) if x.dim() > 2 else x, weight_ND)
    assert isinstance(out, Tensor)
    out = out if x.dim() == 2 else out.unflatten(0, x.shape[:-1])
    return out if bias_N is None else out + bias_N


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ND)
        return product(x_TD, weight_ND.T, x_TD.new_empty(len(x_TD), len(weight_ND)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TN: Tensor):
        x_TD, weight_ND = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        x_grad_TD = product(grad_TN, weight_ND, torch.empty_like(x_TD)) if wants_x else None
        return x_grad_TD, product(grad_TN.T, x_TD, torch.empty_like(weight_ND)) if wants_weight else None
