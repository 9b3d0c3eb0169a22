"""What an objective returns.

Knows nothing about any objective.
"""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """loss: scalar to differentiate, the shard's share of the step's loss: shards and ranks are added up, never divided.

    metrics: name -> (sum, count), both scalars; over shards and ranks they are added up and divided, so that a mean is right
    however the step was split.
    """

    loss: Tensor
    metrics: dict[str, tuple[Tensor | float, float]]
