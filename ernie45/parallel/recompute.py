"""Blocks that keep less for their backward pass and compute it again: all of it, or all but routing and attention.

Knows nothing about training or other processes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ernie45.model.decoder import DecoderBlock
from ernie45.model.vision import VisionBlock

# A choice made twice could differ, and sorting by it twice is wasted; attention is what costs most to do again.
_ROUTING = ("topk", "sort")
_ATTENTION = ("attention",)


def recompute_blocks(modules: nn.Module, mode: Literal["full", "routing"]) -> None:
    """Every block of decoders and towers forgets its activations in forward and computes them again in backward.

    "routing" keeps what top-k, sorting and attention gave, so that no token is routed again (it could be differently) and the
    dearest product is not repeated. Gradients are those without recomputation, bit for bit. Calls without gradients and calls
    with a cache stay as they are. Counts of tokens per expert come with a block's outputs, once.
    """
    context: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if mode == "routing" else {}
    )
    for block in modules.modules():
        if isinstance(block, DecoderBlock | VisionBlock):
            # Not a wrapper module, which would rename parameters; hooks of sharding stay outside, around `forward`.
            block.forward = partial(_forward, block.forward, context)  # type: ignore[method-assign, assignment]


def _forward(forward: Callable, context: dict[str, Any], *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    # No block draws numbers by chance but for LoRA's dropout, which is a pure function of the batch.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **context)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = getattr(op, "__name__", str(op)).split(".")[0]
    keeps = name in _ROUTING or any(part in name for part in _ATTENTION)
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
