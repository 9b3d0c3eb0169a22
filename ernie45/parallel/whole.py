"""A run's modules as they were before they were sharded: a shape without memory, to be filled when the run is over.

Knows nothing about training.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shape_of(modules: nn.ModuleDict) -> nn.ModuleDict:
    """A copy of the modules whose parameters have no memory."""
    memo = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in modules.parameters()
    }
    return copy.deepcopy(modules, memo)  # type: ignore[arg-type]


def whole_tensors(modules: nn.ModuleDict, leave_out: Collection[str]) -> dict[str, Tensor]:
    """Parameters but for some, and buffers, by name, whole and on the host. Every process must call it."""
    tensors = dict(modules.named_buffers())
    for name, parameter in modules.named_parameters():
        if name not in leave_out:
            tensors[name] = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def fill(shape: nn.ModuleDict, tensors: dict[str, Tensor]) -> nn.ModuleDict:
    """Give a shape its tensors."""
    missing = shape.load_state_dict(tensors, strict=False, assign=True).missing_keys
    assert not missing, missing
    return shape
