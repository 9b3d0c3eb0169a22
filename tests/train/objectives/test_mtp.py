"""Multi-token prediction: against a slow formula, sequence by sequence; and that only its gradient is added."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.objectives.mtp import PredictingConfig, labels_ahead, predicting_forward, predicting_loss
from tests.train.conftest import small_config

NO_ROUTER = RouterConfig(aux_weight=0, z_weight=0)


@pytest.fixture
def predicting() -> ErnieModel:
    """Two modules, so that the second continues from the first."""
    model = ErnieModel(replace(small_config(), num_mtp_layers=2))
    model.init_weights(torch.Generator().manual_seed(3))
    return model


def slow_loss(model: ErnieModel, batch: LanguageBatch) -> torch.Tensor:
    """mean_d CE_d, each sequence alone, with whole logits; labels and weights put back at their places."""
    num_tokens = len(batch.packed)
    labels_T = torch.full((num_tokens,), -1).index_copy(0, batch.rows_R, batch.labels_R)
    weights_T = torch.zeros(num_tokens).index_copy(0, batch.rows_R, batch.weights_R)
    features_RD = model.encode_vision(batch.packed.vision) if batch.packed.vision is not None else None
    embeddings_TD = model.embed(batch.packed, features_RD)
    previous_TD = model(batch.packed, features_RD=features_RD).pre_norm_TD
    total = torch.zeros(())
    for depth, module in enumerate(model.mtp):
        outputs = []
        for start, end in zip(batch.packed.cu_seqlens, batch.packed.cu_seqlens[1:], strict=False):
            one = replace(batch.packed, cu_seqlens=(0, end - start), positions_TX=batch.packed.positions_TX[start:end])
            further = embeddings_TD[start + depth + 1 : end]
            next_TD = torch.cat((further, torch.full((end - start - len(further), embeddings_TD.shape[1]), 7.0)))
            outputs.append(module(next_TD, previous_TD[start:end], model.rope(one), one))
            logits_TV = F.linear(model.norm(outputs[-1]), model.head_weight)
            for row in range(start, end - depth - 1):
                label = labels_T[row + depth + 1]
                if label >= 0:
                    nll = -logits_TV[row - start].log_softmax(-1)[label]
                    total = total + weights_T[row + depth + 1] * nll / len(model.mtp)
        previous_TD = torch.cat(outputs)
    return total


@pytest.mark.parametrize("kind", ["text_batch", "picture_batch"])
def test_loss_and_gradients_equal_the_slow_formula(predicting: ErnieModel, kind: str, request: pytest.FixtureRequest) -> None:
    batch: LanguageBatch = request.getfixturevalue(kind)
    assert len(batch.packed.cu_seqlens) > 3, "several sequences"
    plain = language_loss(language_forward(predicting, batch), batch, NO_ROUTER)
    loss, metrics = predicting_loss(predicting_forward(predicting, batch), batch, PredictingConfig(NO_ROUTER, 0.3))
    assert loss.item() == pytest.approx(plain.loss.item(), rel=1e-6), "the value is CE"
    assert metrics["loss"] == plain.metrics["loss"]
    loss.backward()
    got = {name: parameter.grad.clone() for name, parameter in predicting.named_parameters() if parameter.grad is not None}
    predicting.zero_grad()
    (plain.loss + 0.3 * slow_loss(predicting, batch)).backward()
    for name, parameter in predicting.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(got[name], parameter.grad, atol=2e-6), name
    assert got["mtp.1.linear_proj.weight"].abs().sum() > 0


def test_predict_ahead_is_the_same_module(predicting: ErnieModel, text_batch: LanguageBatch) -> None:
    packed = text_batch.packed
    ids_T = packed.token_ids_T.roll(-1)
    out = predicting(packed)
    by_id = predicting.predict_ahead(0, ids_T, out.pre_norm_TD, packed)
    rows_R = predicting_forward(predicting, text_batch).ahead[0].hidden_RD
    inside = [row - 1 for row in text_batch.rows_R.tolist() if row not in packed.cu_seqlens[:-1]]
    assert torch.allclose(by_id.hidden_TD[inside], rows_R, atol=1e-6)


def test_a_model_without_modules_has_the_plain_loss(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    outputs = predicting_forward(model, picture_batch)
    loss, metrics = predicting_loss(outputs, picture_batch, PredictingConfig(RouterConfig(), 0.3))
    plain = language_loss(language_forward(model, picture_batch), picture_batch, RouterConfig())
    assert loss.item() == plain.loss.item()
    assert "mtp_loss" not in metrics


def test_labels_of_a_border_are_not_predicted_from_the_sequence_before(text_batch: LanguageBatch) -> None:
    batch = replace(
        text_batch,
        packed=replace(text_batch.packed, cu_seqlens=(0, 3, 5)),
        rows_R=torch.tensor([0, 1, 3, 4]),
        labels_R=torch.tensor([10, 11, 13, 14]),
        weights_R=torch.tensor([1.0, 2.0, 3.0, 4.0]),
    )
    rows, labels, weights = labels_ahead(batch, 1)
    assert (rows.tolist(), labels.tolist(), weights.tolist()) == ([0, 3], [11, 14], [2.0, 4.0])
    assert labels_ahead(batch, 2)[0].tolist() == []
