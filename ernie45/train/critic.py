"""The critic: the value of a state, from the policy's own hidden state.

Knows nothing about rewards or losses.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Critic(nn.Module):
    """Two layers with SiLU between: [R, D] -> [R]. The last one begins at zero, so that every value does."""

    def __init__(self, model_size: int, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(model_size, hidden_size)
        self.outer = nn.Linear(hidden_size, 1)
        with torch.no_grad():
            self.inner.weight.normal_(0.0, model_size**-0.5, generator=generator)
            for parameter in (self.inner.bias, self.outer.weight, self.outer.bias):
                parameter.zero_()

    def forward(self, hidden_RD: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(hidden_RD.float())))[:, 0]
