"""Recomputed blocks: the same gradients to the bit, routed once, counted once, less kept."""

from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.parallel.recompute import recompute_blocks
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.routing import usage_of
from tests.train.conftest import batches_of, small_config


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def run(mode: Literal["none", "full", "routing"], batch: LanguageBatch, dtype: torch.dtype) -> dict[str, Any]:
    model = ErnieModel(small_config())
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(dtype)
    if mode != "none":
        recompute_blocks(model, mode)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with Calls() as calls:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = language_forward(model, batch)
            loss = language_loss(outputs, batch, RouterConfig()).loss
        forward = dict(calls.count)
        loss.backward()
    backward = {name: count - forward.get(name, 0) for name, count in calls.count.items()}
    return {
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "usage": usage_of(outputs.routers),
        "kept": sum(kept),
        "backward": backward,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit_and_routing_is_not_done_again(processor: Any, dtype: torch.dtype) -> None:
    batch = batches_of(processor, {"read": 1.0, "arithmetic": 1.0})(0, 0)
    plain, full, routing = (run(mode, batch, dtype) for mode in ("none", "full", "routing"))
    for found in (full, routing):
        for name, expected in plain["gradients"].items():
            assert expected is not None, name
            assert torch.equal(found["gradients"][name], expected), name
        for usage_E, expected_E in zip(found["usage"], plain["usage"], strict=True):
            assert torch.equal(usage_E, expected_E)
        assert found["kept"] < 0.5 * plain["kept"]
    # Two pools in each of two layers: once more where all is recomputed, never where routing is kept. The balance loss has a
    # top-k of its own, outside.
    assert full["backward"]["topk"] == plain["backward"].get("topk", 0) + 4
    assert full["backward"]["attention_forward"] == 3
    for name in ("topk", "sort", "attention_forward", "_scaled_dot_product_flash_attention_for_cpu"):
        assert routing["backward"].get(name, 0) == 0, name


def test_calls_without_gradients_are_not_checkpointed(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    with torch.no_grad():
        expected = model(picture_batch.packed).hidden_TD
        recompute_blocks(model, "routing")
        assert torch.equal(model(picture_batch.packed).hidden_TD, expected)
