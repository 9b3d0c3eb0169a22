"""RMS normalisation as ERNIE 4.5 computes it.

Knows nothing about layers or where the result goes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import decode


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * weight over the last axis; any leading axes.

    The mean and the division are fp32 whatever the input; the quotient is rounded to x's dtype before the weight is
    applied, as in Baidu's code, so bf16 results match it. Returns x's shape and dtype.
    """
    if x_TD.dtype == torch.float32:
        if x_TD.ndim == 2 and decode.serves(x_TD):
            return decode.rms_norm(x_TD, weight_D, eps)
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D, eps)
    return rms_norm_reference(x_TD, weight_D, eps)


def rms_norm_reference(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same, written out."""
    wide_TD = x_TD.float()
    scaled_TD = wide_TD * torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return weight_D * scaled_TD.to(x_TD.dtype)
