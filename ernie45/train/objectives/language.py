"""Next-token loss of packed sequences, token-balanced, with router losses.

Knows nothing about stages or where labels come from. Pictures never carry labels: there is one head and one loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.cross_entropy import CrossEntropy, linear_cross_entropy
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
    """Token-balanced cross entropy plus router losses (gradient only)."""
    count = len(outputs.hidden_RD)
    terms = token_balanced_loss(outputs.hidden_RD, outputs.head_VD, batch.labels_R, batch.token_budget)
    loss = gradient_only(terms.loss, router_losses(outputs.routers, config))
    return Loss(loss, {"loss": (terms.losses_R.sum(), count), "accuracy": (terms.right_R.sum(), count)})


def token_balanced_loss(hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, num_tokens: int) -> CrossEntropy:
    """Cross entropy of the labelled tokens with the mean as value and the sum over `num_tokens` as gradient.

    num_tokens is a constant: all tokens a step has room for, pictures and prompts included. In sample i a label so counts
    1 / (labelled + masked tokens), not 1 / labelled: a long picture with a short answer does not outweigh a text.
    Source: ERNIE 4.5's token-balanced loss.
    """
    row_weights_R = torch.full((len(hidden_RD),), 1 / num_tokens, device=hidden_RD.device)
    terms = linear_cross_entropy(hidden_RD, head_VD, labels_R, row_weights_R)
    mean = terms.losses_R.mean() if len(hidden_RD) else torch.zeros_like(terms.loss)
    return terms._replace(loss=terms.loss - terms.loss.detach() + mean)
