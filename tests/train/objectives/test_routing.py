"""Router losses: the formulas, and that each of them moves the router."""

import pytest
import torch

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.routing import aux_loss, gradient_only, router_losses, z_loss


def router_output(logits_RE: torch.Tensor, experts_RA: torch.Tensor | None = None) -> RouterOutput:
    experts_RA = logits_RE.topk(2, dim=-1).indices if experts_RA is None else experts_RA
    weights_RA = logits_RE.softmax(-1).gather(-1, experts_RA)
    counts_E = torch.bincount(experts_RA.flatten(), minlength=logits_RE.shape[1])
    return RouterOutput("text", logits_RE, experts_RA, weights_RA, counts_E)


def test_aux_loss_by_hand() -> None:
    logits_RE = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    probabilities = logits_RE.softmax(-1)
    expected = 0.0
    for expert in range(4):
        share = sum(expert in row.topk(2).indices.tolist() for row in logits_RE) / 7
        expected += 4 * float(probabilities[:, expert].mean()) * share
    assert float(aux_loss(router_output(logits_RE))) == pytest.approx(expected, rel=1e-5)


def test_aux_loss_of_a_layer_is_transformers_load_balancing_loss() -> None:
    """Value and gradient; transformers then mixes layers and modalities into one mean, ours stay apart."""
    theirs = pytest.importorskip("transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe").load_balancing_loss_func
    logits_RE = torch.randn(23, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    ours = aux_loss(router_output(logits_RE))
    other = theirs((logits_RE,), num_experts=8, top_k=2)
    assert ours.item() == pytest.approx(other.item(), rel=1e-6)
    got, expected = (torch.autograd.grad(loss, logits_RE, retain_graph=True)[0] for loss in (ours, other))
    torch.testing.assert_close(got, expected)


def test_pools_have_weights_of_their_own(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    with torch.no_grad():
        routers = model(picture_batch.packed).routers
    config = RouterConfig(aux_weight=2.0, z_weight=3.0, vision_aux_ratio=0.5, vision_z_ratio=0.1)
    expected = sum(2 * float(aux_loss(text)) + 3 * float(z_loss(text)) for text, _ in routers)
    expected += sum(float(aux_loss(vision)) + 0.3 * float(z_loss(vision)) for _, vision in routers)
    found = router_losses(routers, config)
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_aux_loss_counts_the_uncorrected_choice() -> None:
    """With the correction bias on, the dispatched experts differ; the loss must not see them."""
    logits_RE = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    elsewhere = torch.tensor([[0, 1]]).repeat(7, 1)
    assert float(aux_loss(router_output(logits_RE, elsewhere))) == float(aux_loss(router_output(logits_RE)))


def test_aux_loss_is_lowest_when_balanced_and_zero_without_tokens() -> None:
    balanced = router_output(torch.eye(4).repeat(5, 1) * 0.01)
    crowded = router_output(torch.tensor([[4.0, 3.0, 0.0, 0.0]]).repeat(20, 1))
    assert float(aux_loss(balanced)) == pytest.approx(2.0, rel=0.02)  # A = 2 active experts
    assert float(aux_loss(crowded)) > 3.5
    empty = router_output(torch.empty(0, 4, requires_grad=True))
    assert aux_loss(empty).item() == z_loss(empty).item() == 0.0


def test_z_loss_by_hand() -> None:
    logits_RE = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected = sum(float(row.exp().sum().log()) ** 2 for row in logits_RE) / 5
    assert float(z_loss(router_output(logits_RE))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", [RouterConfig(aux_weight=1.0, z_weight=0.0), RouterConfig(aux_weight=0.0, z_weight=1.0)])
@pytest.mark.parametrize("pool", ["text", "vision"])
def test_each_loss_moves_every_router(model: ErnieModel, picture_batch: LanguageBatch, config: RouterConfig, pool: str) -> None:
    loss = router_losses(model(picture_batch.packed).routers, config)
    assert loss is not None
    gradient_only(torch.zeros((), requires_grad=True), loss).backward()
    router = model.get_submodule(f"layers.1.mlp.pools.{pool}.router")
    gradient = router.get_parameter("weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    before = loss.item()
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "Router":
                weight = module.get_parameter("weight")
                assert weight.grad is not None
                weight -= 0.05 * weight.grad
        after = router_losses(model(picture_batch.packed).routers, config)
    assert after is not None
    assert after.item() < before


def test_gradient_only_keeps_the_value() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    loss = gradient_only(weight * 3, weight * 100)
    assert loss.item() == 6.0
    loss.backward()
    assert float(weight.grad or 0) == 103.0
    assert router_losses([], RouterConfig(aux_weight=0, z_weight=0)) is None
