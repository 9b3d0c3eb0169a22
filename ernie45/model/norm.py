"""RMSNorm as a module.

Knows nothing about where in a block it stands.
"""

import torch
from torch import Tensor, nn

from ernie45.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight and no bias, over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight, self.eps)
