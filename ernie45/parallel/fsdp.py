"""Sharded data parallel: every process holds its part of all weights, and gathers a block's just before it runs (FSDP2).

Knows nothing about optimisers or batches beyond what the model takes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from ernie45.model.batch import PackedBatch, VisionBatch
from ernie45.model.decoder import DecoderBlock, MTPModule
from ernie45.model.moe import Router
from ernie45.model.multimodal import ErnieModel
from ernie45.model.resampler import Resampler
from ernie45.model.vision import VisionBlock, VisionTower

_UNITS = (DecoderBlock, MTPModule, VisionBlock, VisionTower, Resampler)


class Root(nn.Module):
    """All modules of a run as one, whose forward is whatever a stage does with them.

    What belongs to no block (the embedding, which may be the head too, the last norm, heads of a stage) is one group here. It
    stays gathered until the backward pass is over, as losses use the head after the model's own forward.
    """

    def __init__(self, modules: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = modules

    def forward(self, function: Callable[[nn.ModuleDict, Any], Any], batch: Any) -> Any:
        """function(modules, batch)."""
        return function(self.parts, batch)


def shard_fully(modules: nn.ModuleDict, num_processes: int) -> Root:
    """Deal parameters out over all processes, block by block; gradients are summed, not averaged, in fp32.

    Gates stay whole everywhere: they are small, fp32 beside bf16, and their upkeep looks at all of their rows. Stacked experts
    are dealt out by expert where there are enough, so that an optimiser has whole matrices, else along the next axis that
    divides. Needs a process group. Every process must run the same blocks as often.
    """
    device = next(modules.parameters()).device.type
    ignored = {module.weight for module in modules.modules() if isinstance(module, Router)}
    root = Root(modules)
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device, (num_processes,), mesh_dim_names=("dp_shard",)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "shard_placement_fn": lambda parameter: _placement(parameter, num_processes),
        "ignored_params": ignored,
    }
    for module in reversed(list(modules.modules())):
        if isinstance(module, _UNITS):
            fully_shard(module, **settings)
        elif isinstance(module, ErnieModel) and module.vision_model is not None:
            module.register_forward_pre_hook(_with_pictures)
    fully_shard(root, **settings, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no product within a sum
    return root


def _placement(parameter: Tensor, num_processes: int) -> Shard:
    if parameter.ndim < 3 or parameter.shape[0] >= num_processes:
        return Shard(0)
    axis = next((axis for axis in range(1, parameter.ndim) if parameter.shape[axis] % num_processes == 0), 0)
    return Shard(axis)


def _with_pictures(model: nn.Module, args: tuple) -> tuple | None:
    """A batch without pictures runs the tower on none: another process may have some, and its gathers need an answer."""
    batch = args[0]
    assert isinstance(model, ErnieModel)
    assert isinstance(batch, PackedBatch)
    if batch.vision is not None or len(args) > 1:
        return None
    assert model.config.vision is not None
    device = batch.token_ids_T.device
    patches_PC = torch.empty(0, model.config.vision.patch_dim, dtype=torch.uint8, device=device)
    rows_R = torch.empty(0, dtype=torch.int64, device=device)
    vision = VisionBatch(patches_PC=patches_PC, grids=())
    return (dataclasses.replace(batch, vision=vision, feature_rows_R=rows_R), *args[1:])
