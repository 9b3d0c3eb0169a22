"""Next-token loss of packed sequences with router losses.

Knows nothing about stages, nor where labels and their weights come from. Pictures never carry labels: there is one head and
one loss.
"""

from typing import NamedTuple

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
    return Loss(loss, {"loss": (terms.losses_R.sum(), count), "accuracy": (terms.right_R.sum(), count)})
