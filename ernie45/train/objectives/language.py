"""Next-token loss of packed sequences with router losses.

Knows nothing about stages, nor where labels and their weights come from. Pictures never carry labels: there is one head and
one loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.cross_entropy import linear_cross_entropy
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.routing import gradient_only, router_losses


class LanguageOutputs(NamedTuple):
    """hidden_RD: last hidden states of the rows with a label; head_VD: the output embedding; routers of every MoE layer."""

    hidden_RD: Tensor
    head_VD: Tensor
    routers: list[list[RouterOutput]]


def language_forward(model: ErnieModel, batch: LanguageBatch) -> LanguageOutputs:
    """Run the model; of its rows only those with a label go on to the loss."""
    out = model(batch.packed)
    return LanguageOutputs(out.hidden_TD.index_select(0, batch.rows_R), model.head_weight, out.routers)


def language_loss(outputs: LanguageOutputs, batch: LanguageBatch, config: RouterConfig) -> Loss:
    """Weighted cross entropy, plus router losses (gradient only). The metric is the plain mean over labels."""
    count = len(outputs.hidden_RD)
    terms = linear_cross_entropy(outputs.hidden_RD, outputs.head_VD, batch.labels_R, batch.weights_R)
    loss = gradient_only(terms.loss, router_losses(outputs.routers, config, batch.share))
    metrics = {"loss": (terms.losses_R.sum(), count), "accuracy": (terms.right_R.sum(), count)}
    return Loss(loss, metrics | losses_by_source(terms.losses_R, batch))


def losses_by_source(losses_R: Tensor, batch: LanguageBatch) -> dict[str, tuple[Tensor | float, float]]:
    """`loss.text`, `loss.pictures` (labels in sequences without and with pictures) and `loss.source.NAME`, sums and counts.

    Empty for a batch that names no sources. Other batches give all names, with a count of 0 where there is nothing, as every
    process must have the same.
    """
    if not batch.sources:
        return {}
    assert batch.shows_R is not None, batch.sources
    assert batch.source_R is not None, batch.sources
    names = ("loss.text", "loss.pictures", *(f"loss.source.{name}" for name in batch.sources))
    found = {}
    for index_R, first in ((batch.shows_R.long(), 0), (batch.source_R, 2)):
        size = len(names) - 2 if first else 2
        sums = losses_R.new_zeros(size).index_add_(0, index_R, losses_R).tolist()
        counts = losses_R.new_zeros(size).index_add_(0, index_R, torch.ones_like(losses_R)).tolist()
        found |= dict(zip(names[first : first + size], zip(sums, counts, strict=True), strict=True))
    return found
