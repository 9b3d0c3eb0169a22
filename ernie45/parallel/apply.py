"""Everything that is done to a plain model before it trains, in order.

Knows nothing about stages, losses or optimisers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ernie45.config.train import LoopConfig
from ernie45.parallel.fsdp import shard_fully
from ernie45.parallel.recompute import recompute_blocks

Run = Callable[[Callable[[nn.ModuleDict, Any], Any], Any], Any]
"""(function, batch) -> function(modules, batch), with parameters gathered where they are dealt out."""


def apply(modules: nn.ModuleDict, config: LoopConfig, num_processes: int) -> Run:
    """1 recomputation, 2 precision, 3 sharding. Parameters keep their names, but may be other objects afterwards."""
    if config.recompute != "none":
        recompute_blocks(modules, config.recompute)
    if config.precision == "bf16":
        modules.to(torch.bfloat16)
    if config.shard == "full" and num_processes > 1:
        return shard_fully(modules, num_processes)
    return lambda function, batch: function(modules, batch)
