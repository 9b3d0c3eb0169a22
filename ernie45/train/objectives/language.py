"""Next-token loss of packed sequences, token-balanced, with router losses.

Knows nothing about stages or where labels come from. Pictures never carry labels: there is one head and one loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.routing import gradient_only, router_losses


class LanguageOutputs(NamedTuple):
    """logits_RV of the rows that have a label, and the routers of every MoE layer."""

    logits_RV: Tensor
    routers: list[list[RouterOutput]]


def language_forward(model: ErnieModel, batch: LanguageBatch) -> LanguageOutputs:
    """Run the model; the head only on rows with a label."""
    out = model(batch.packed)
    return LanguageOutputs(model.logits(out.hidden_TD.index_select(0, batch.rows_R)), out.routers)


def language_loss(outputs: LanguageOutputs, batch: LanguageBatch, config: RouterConfig) -> Loss:
    """Token-balanced cross entropy plus router losses (gradient only)."""
    ce_R = F.cross_entropy(outputs.logits_RV.float(), batch.labels_R, reduction="none")
    loss = gradient_only(token_balanced_loss(ce_R, batch.token_budget), router_losses(outputs.routers, config))
    detached_R = ce_R.detach()
    right_R = outputs.logits_RV.detach().argmax(-1) == batch.labels_R
    count = len(ce_R)
    return Loss(loss, {"loss": (detached_R.sum(), count), "accuracy": (right_R.sum(), count)})


def token_balanced_loss(ce_R: Tensor, num_tokens: int) -> Tensor:
    """Cross entropies of the labelled tokens with the mean as value and the sum over `num_tokens` as gradient.

    num_tokens is a constant: all tokens a step has room for, pictures and prompts included. In sample i a label so counts
    1 / (labelled + masked tokens), not 1 / labelled: a long picture with a short answer does not outweigh a text.
    Source: ERNIE 4.5's token-balanced loss.
    """
    balanced = ce_R.sum() / num_tokens
    mean = ce_R.detach().mean() if len(ce_R) else torch.zeros(())
    return balanced - balanced.detach() + mean
