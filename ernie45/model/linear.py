"""A projection whose products in training go through our own kernels where they are faster.

Knows nothing about what is projected.
"""

from torch import Tensor, nn

from ernie45.ops.matmul import linear


class Linear(nn.Linear):
    """torch's own in every respect but speed."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
