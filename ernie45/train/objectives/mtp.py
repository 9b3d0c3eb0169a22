"""Multi-token prediction: modules that predict the tokens after the next one, and what their loss adds.

Knows nothing about phases or how a step is split.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.batch import PackedBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.cross_entropy import linear_cross_entropy
from ernie45.train.objectives.language import LanguageOutputs, language_loss
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.routing import gradient_only


class Ahead(NamedTuple):
    """What one module says. hidden_RD: of its rows with a label; labels_R: that label; weights_R: as in `LanguageBatch`."""

    hidden_RD: Tensor
    labels_R: Tensor
    weights_R: Tensor


class PredictingOutputs(NamedTuple):
    """Outputs of the model, and of each of its multi-token-prediction modules."""

    language: LanguageOutputs
    ahead: tuple[Ahead, ...]


class PredictingConfig(NamedTuple):
    """Settings of `predicting_loss`."""

    router: RouterConfig
    mtp_weight: float


def predicting_forward(model: ErnieModel, batch: LanguageBatch) -> PredictingOutputs:
    """Run the model once, then its modules, each from the hidden states of the one before.

    Pictures are encoded once: the modules see the same features in the places of the placeholders.
    """
    packed = batch.packed
    features_RD = None if packed.vision is None or not model.mtp else model.encode_vision(packed.vision)
    out = model(packed, features_RD=features_RD)
    language = LanguageOutputs(out.hidden_TD.index_select(0, batch.rows_R), model.head_weight, out.routers)
    if not model.mtp:
        return PredictingOutputs(language, ())
    ahead, previous_TD = [], out.pre_norm_TD
    embeddings_TD = model.embed(packed, features_RD)
    for depth in range(len(model.mtp)):
        # Row t of module d reads token t + 1 + d; across a border it reads what it will not be judged by.
        embeddings_TD = embeddings_TD.roll(-1, 0)
        step = model.predict_ahead_from(depth, embeddings_TD, previous_TD, packed)
        previous_TD = step.pre_norm_TD
        rows_R, labels_R, weights_R = labels_ahead(batch, depth + 1)
        ahead.append(Ahead(step.hidden_TD.index_select(0, rows_R), labels_R, weights_R))
    return PredictingOutputs(language, tuple(ahead))


def labels_ahead(batch: LanguageBatch, distance: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels and weights when each row predicts the label of the row `distance` further on in its sequence.

    A label keeps its mask and weight; the first `distance` rows of a sequence lose theirs, as no row before could give it.
    """
    starts_T = sequence_starts(batch.packed)
    rows_R = batch.rows_R - distance
    keeps_R = rows_R >= starts_T[batch.rows_R]
    return rows_R[keeps_R], batch.labels_R[keeps_R], batch.weights_R[keeps_R]


def sequence_starts(packed: PackedBatch) -> Tensor:
    """For every row, the first row of its sequence, int64 [T]."""
    borders = torch.tensor(packed.cu_seqlens, device=packed.token_ids_T.device)
    return borders[:-1].repeat_interleave(borders.diff())


def predicting_loss(outputs: PredictingOutputs, batch: LanguageBatch, config: PredictingConfig) -> Loss:
    """loss = CE + router losses + weight * mean_d CE_d, the additions with their gradient alone; the value stays CE.

    CE_d: cross entropy of module d, weighted label by label like CE. The metric `mtp_loss` is their mean over labels. Source:
    ERNIE's public training code (depth 1, weight 0.1).
    """
    loss, metrics = language_loss(outputs.language, batch, config.router)
    if not outputs.ahead:
        return Loss(loss, metrics)
    total = loss.new_zeros(())
    sums, count = loss.new_zeros(()), 0
    for hidden_RD, labels_R, weights_R in outputs.ahead:
        terms = linear_cross_entropy(hidden_RD, outputs.language.head_VD, labels_R, weights_R)
        total = total + terms.loss
        sums, count = sums + terms.losses_R.sum(), count + len(labels_R)
    extra = config.mtp_weight / len(outputs.ahead) * total
    return Loss(gradient_only(loss, extra), {**metrics, "mtp_loss": (sums, count)})
