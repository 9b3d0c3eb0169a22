"""Upkeep of the routers: the orthogonal step and the correction bias."""

import pytest
import torch

from ernie45.data.packing import LanguageBatch
from ernie45.model.moe import Router
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.moe import route
from ernie45.train.routing import (
    balance_step,
    max_violation,
    orthogonal_gradient,
    orthogonal_loss,
    orthogonal_step,
    pools_of,
    usage_of,
)


def gate(num_experts: int = 6, hidden: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_experts, hidden, generator=torch.Generator().manual_seed(seed))


def test_orthogonal_loss_by_hand() -> None:
    weight = gate()
    expected = 0.0
    for i, one in enumerate(weight):
        for j, other in enumerate(weight):
            expected += (float(torch.cosine_similarity(one, other, dim=0)) - (i == j)) ** 2
    assert float(orthogonal_loss(weight)) == pytest.approx(expected / 36, rel=1e-4)
    assert float(orthogonal_loss(3 * torch.eye(6, 10))) == pytest.approx(0, abs=1e-12)


def test_closed_form_gradient_is_autograds() -> None:
    weight = gate().requires_grad_()
    (expected,) = torch.autograd.grad(orthogonal_loss(weight), weight)
    assert torch.allclose(orthogonal_gradient(weight.detach()), expected, atol=1e-7)


def test_orthogonal_step_moves_every_gate_by_lr_times_weight_times_its_own_gradient(model: ErnieModel) -> None:
    """Decoupled and scaled by the rate; the text gate does not see the vision gate."""
    before = {name: pool.router.weight.detach().clone() for name, pool in pools_of(model)}
    others = {name: p.detach().clone() for name, p in model.named_parameters() if "router" not in name}
    for _, pool in pools_of(model):
        orthogonal_step(pool.router, lr=0.5, weight=0.1)
    for name, pool in pools_of(model):
        expected = before[name] - 0.05 * orthogonal_gradient(before[name])
        assert torch.allclose(pool.router.weight, expected, atol=1e-7), name
        assert orthogonal_loss(pool.router.weight.detach()) < orthogonal_loss(before[name])
    assert all(torch.equal(p, others[name]) for name, p in model.named_parameters() if name in others)


def test_balance_step_by_hand() -> None:
    router = Router(4, 4)
    router.correction_bias.copy_(torch.tensor([0.1, 0.0, 0.0, 0.0]))
    balance_step(router, torch.tensor([10, 0, 5, 5]), rate=0.01)
    assert torch.allclose(router.correction_bias, torch.tensor([0.09, 0.01, 0.0, 0.0]))


def test_balance_steps_even_out_a_crooked_router() -> None:
    """All tokens like the first two experts; the bias alone brings every expert to its share, weights staying those of p."""
    router = Router(8, 4)
    with torch.no_grad():
        router.weight.copy_(gate(4, 8) * 0.3)
        router.weight[:2] += 0.5
    x_RD = torch.randn(500, 8, generator=torch.Generator().manual_seed(3)) + 0.5
    router.correction_bias.zero_()

    def usage() -> torch.Tensor:
        experts_RA = route(x_RD, router.weight, router.correction_bias, 2, 1e-12).experts_RA
        return torch.bincount(experts_RA.flatten(), minlength=4)

    crooked = max_violation(usage())
    for _ in range(300):
        balance_step(router, usage(), rate=0.01)
    assert crooked > 0.5
    assert max_violation(usage()) < 0.15
    weights = route(x_RD, router.weight, router.correction_bias, 2, 1e-12).weights_RA
    assert torch.allclose(weights.sum(-1), torch.ones(500))


def test_usage_is_in_the_order_of_the_pools(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    """Counts of each pool add up to its tokens times the active experts: text and vision are not swapped."""
    usage = usage_of(model(picture_batch.packed).routers)
    pools = list(pools_of(model))
    assert len(usage) == len(pools) == 4
    for (_, pool), usage_E in zip(pools, usage, strict=True):
        rows = picture_batch.packed.text_rows if pool.config.modality == "text" else picture_batch.packed.vision_rows
        assert int(usage_E.sum()) == rows.count * pool.config.num_active


def test_max_violation() -> None:
    assert max_violation(torch.tensor([5, 5, 5, 5])) == 0.0
    assert max_violation(torch.tensor([20, 0, 0, 0])) == 3.0
    assert max_violation(torch.zeros(4)) == 0.0
