"""What an objective returns.

Knows nothing about any objective.
"""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """loss: scalar to differentiate. metrics: name -> (sum, count), both scalars; over shards and ranks they are added up and
    divided, so that a mean is right however the step was split."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor | float, float]]
