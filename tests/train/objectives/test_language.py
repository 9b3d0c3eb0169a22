"""The language loss: token balance, and who gets a gradient."""

import pytest
import torch
from torch.nn import functional as F

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch, token_balanced_weights
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.cross_entropy import linear_cross_entropy
from ernie45.train.objectives.language import language_forward, language_loss

NO_ROUTER_LOSS = RouterConfig(aux_weight=0, z_weight=0)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [27, 6], head [9, 6] and labels [27]."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(count, 6, generator=generator).requires_grad_() for count in (27, 9))
    return hidden, head, torch.randint(0, 9, (27,), generator=generator)


def test_token_balanced_gradient_is_that_of_the_samples_own_losses(rows) -> None:
    """L_i = sum(ce) / (labelled + masked tokens of i); weighting samples by their length gives the constant divisor."""
    hidden, head, labels = rows
    lengths, labelled = [10, 40, 25], [3, 4, 20]
    ce = F.cross_entropy(hidden @ head.T, labels, reduction="none").split(labelled)
    total = sum(lengths)
    own = torch.stack([length / total * (one.sum() / length) for one, length in zip(ce, lengths, strict=True)]).sum()
    expected = torch.autograd.grad(own, [hidden, head])
    (weight,) = token_balanced_weights([None], total)  # type: ignore[list-item]
    got = torch.autograd.grad(linear_cross_entropy(hidden, head, labels, torch.full((27,), weight)).loss, [hidden, head])
    torch.testing.assert_close(got, expected)


def test_loss_equals_cross_entropy_on_labelled_rows(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    outputs = language_forward(model, picture_batch)
    loss = language_loss(outputs, picture_batch, NO_ROUTER_LOSS)
    expected = F.cross_entropy(outputs.hidden_RD @ outputs.head_VD.T, picture_batch.labels_R)
    weight = float(picture_batch.weights_R[0])
    assert weight == pytest.approx(1 / 300)
    assert loss.loss.item() == pytest.approx(expected.item() * len(picture_batch.labels_R) * weight, rel=1e-5)
    value, count = loss.metrics["loss"]
    assert float(value) / count == pytest.approx(expected.item(), rel=1e-5)
    with_routers = language_loss(outputs, picture_batch, RouterConfig(aux_weight=1.0, z_weight=1.0))
    assert with_routers.loss.item() == pytest.approx(loss.loss.item(), rel=1e-5)


def test_vision_experts_and_tower_learn_from_pictures(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    """All but the last layer's vision experts: nothing reads a picture's rows after them, in the released model neither."""
    language_loss(language_forward(model, picture_batch), picture_batch, NO_ROUTER_LOSS).loss.backward()
    last = f"layers.{model.config.num_layers - 1}.mlp.pools.vision."
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != name.startswith(last), name


def test_without_pictures_the_vision_side_rests_and_nothing_breaks(model: ErnieModel, text_batch: LanguageBatch) -> None:
    language_loss(language_forward(model, text_batch), text_batch, NO_ROUTER_LOSS).loss.backward()
    vision = model.get_parameter("layers.1.mlp.pools.vision.gate_up_weight").grad
    text = model.get_parameter("layers.1.mlp.pools.text.gate_up_weight").grad
    assert vision is not None
    assert not vision.any()
    assert text is not None
    assert text.abs().sum() > 0
    assert model.get_parameter("vision_model.patch_embed.weight").grad is None


def test_losses_by_source_and_modality_add_up(
    model: ErnieModel, picture_batch: LanguageBatch, text_batch: LanguageBatch
) -> None:
    for batch, with_labels in ((picture_batch, "loss.pictures"), (text_batch, "loss.text")):
        metrics = language_loss(language_forward(model, batch), batch, NO_ROUTER_LOSS).metrics
        value, count = metrics["loss"]
        assert metrics[with_labels] == (pytest.approx(float(value), rel=1e-5), count)
        sources = {name: both for name, both in metrics.items() if name.startswith("loss.source.")}
        assert len(sources) == len(batch.sources), "every process has the same names"
        assert sum(both[1] for both in sources.values()) == count
        assert sum(float(both[0]) for both in sources.values()) == pytest.approx(float(value), rel=1e-5)
