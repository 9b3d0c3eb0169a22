"""The DPO family: losses of preference pairs, from the log-probabilities of two answers to one prompt.

Knows nothing about models, packing or where a reference comes from. docs/preference.md has the formulas and their sources.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.config.preference import PreferenceConfig
from ernie45.train.objectives.loss import Loss


class PairLogProbs(NamedTuple):
    """What the losses see of each pair.

    chosen_B, rejected_B: log-probability of the whole answer, with gradient; reference_*_B: of the reference, without (zeros
    where there is none). *_lengths_B: labelled tokens of the answer, at least 1. margins_B: how much better the chosen one is,
    in units of the data's own. kl_2: mean log-ratio of chosen and of rejected answers over the whole step, where KTO is asked.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    reference_chosen_B: Tensor
    reference_rejected_B: Tensor
    chosen_lengths_B: Tensor
    rejected_lengths_B: Tensor
    margins_B: Tensor
    kl_2: Tensor | None = None

    @property
    def chosen_ratio_B(self) -> Tensor:
        """log of policy over reference for the chosen answer."""
        return self.chosen_B - self.reference_chosen_B

    @property
    def rejected_ratio_B(self) -> Tensor:
        return self.rejected_B - self.reference_rejected_B

    @property
    def delta_B(self) -> Tensor:
        """How much more the policy has moved towards the chosen answer than towards the rejected one."""
        return self.chosen_ratio_B - self.rejected_ratio_B

    def by_token(self) -> "PairLogProbs":
        """The same with every log-probability divided by its answer's length."""
        return self._replace(
            chosen_B=self.chosen_B / self.chosen_lengths_B,
            rejected_B=self.rejected_B / self.rejected_lengths_B,
            reference_chosen_B=self.reference_chosen_B / self.chosen_lengths_B,
            reference_rejected_B=self.reference_rejected_B / self.rejected_lengths_B,
        )


def sigmoid_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """DPO. With smoothing the conservative DPO of Mitchell (2023), with an offset ODPO (Amini et al., 2024)."""
    return _smoothed(config.beta * pairs.delta_B - config.offset * pairs.margins_B, config.label_smoothing)


def robust_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Unbiased under a share of flipped labels (Chowdhury et al., 2024); may be negative."""
    logits_B, flipped = config.beta * pairs.delta_B, config.label_smoothing
    return (flipped * F.logsigmoid(-logits_B) - (1 - flipped) * F.logsigmoid(logits_B)) / (1 - 2 * flipped)


def ipo_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Squared distance from a fixed gap, by token (Azar et al., 2023; the authors' own normalisation)."""
    return (pairs.by_token().delta_B - 1 / (2 * config.beta)).square()


def hinge_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """SLiC's hinge on DPO's logit (Zhao et al., 2023; Liu et al., 2023)."""
    return (1 - config.beta * pairs.delta_B).relu()


def dpop_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """DPO that pays when the chosen answer itself becomes less likely (Pal et al., Smaug, 2024)."""
    fallen_B = (-pairs.chosen_ratio_B).relu()
    return -F.logsigmoid(config.beta * (pairs.delta_B - config.dpop_weight * fallen_B))


def nca_pair_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Noise contrastive alignment of two answers (Chen et al., 2024): looks at each answer's own reward."""
    chosen_B, rejected_B = config.beta * pairs.chosen_ratio_B, config.beta * pairs.rejected_ratio_B
    return -F.logsigmoid(chosen_B) - 0.5 * F.logsigmoid(-chosen_B) - 0.5 * F.logsigmoid(-rejected_B)


def sppo_hard_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Self-play against hard wins and losses: both log-ratios to fixed places (Wu et al., 2024, with P = 1 and 0)."""
    place = 1 / (2 * config.beta)
    return (pairs.chosen_ratio_B - place).square() + (pairs.rejected_ratio_B + place).square()


def apo_zero_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Up with the chosen, down with the rejected: for chosen answers better than the model's (D'Oosterlinck et al., 2024)."""
    return (-config.beta * pairs.chosen_ratio_B).sigmoid() + (config.beta * pairs.rejected_ratio_B).sigmoid()


def apo_down_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Down with both, the rejected more: for chosen answers worse than the model's (the same paper)."""
    return (config.beta * pairs.chosen_ratio_B).sigmoid() + (-config.beta * pairs.delta_B).sigmoid()


def kto_pair_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """KTO's value of a chosen and of a rejected answer, each against the mean of the other side (Ethayarajh et al., 2024).

    The two means are over the step's pairs, at least 0 and without gradient. Half the sum, as a pair is two answers.
    """
    assert pairs.kl_2 is not None, "the step's mean log-ratios are missing"
    chosen_kl, rejected_kl = pairs.kl_2.clamp_min(0)
    chosen_B = kto_loss(pairs.chosen_ratio_B, rejected_kl, True, config)
    rejected_B = kto_loss(pairs.rejected_ratio_B, chosen_kl, False, config)
    return (chosen_B + rejected_B) / 2


def kto_loss(ratio_B: Tensor, kl: Tensor, desirable: bool, config: PreferenceConfig) -> Tensor:
    """KTO of answers that are all desirable or all not: 1 - sigmoid of how far they are on their side of the baseline."""
    weight = config.kto_chosen_weight if desirable else config.kto_rejected_weight
    ahead_B = ratio_B - kl if desirable else kl - ratio_B
    return weight * (-config.beta * ahead_B).sigmoid()


def simpo_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """Without a reference: log-probabilities by token, a margin apart (Meng et al., 2024)."""
    by_token = pairs.by_token()
    logits_B = config.beta * (by_token.chosen_B - by_token.rejected_B) - config.simpo_margin
    return _smoothed(logits_B, config.label_smoothing)


def orpo_loss(pairs: PairLogProbs, config: PreferenceConfig) -> Tensor:
    """-log sigmoid of the log odds ratio of both answers by token; its weight is the paper's lambda (Hong et al., 2024)."""
    by_token = pairs.by_token()
    return -F.logsigmoid(_log_odds(by_token.chosen_B) - _log_odds(by_token.rejected_B))


LOSSES: dict[str, Callable[[PairLogProbs, PreferenceConfig], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "robust": robust_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "dpop": dpop_loss,
    "nca_pair": nca_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "kto_pair": kto_pair_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
}


class PairWeights(NamedTuple):
    """A shard's place in its step. pair: 1 / pairs of the step. token: 1 / labelled tokens of all chosen answers of the step.

    share: of the shard, in what is reported once a step.
    """

    pair: float
    token: float
    share: float


def preference_loss(pairs: PairLogProbs, weights: PairWeights, config: PreferenceConfig) -> Loss:
    """The weighted losses of a shard's pairs plus `sft_weight` times the cross entropy of the chosen answers, by token.

    The shard's share of the step's loss: over all shards it adds up to the mean over pairs and over tokens.
    """
    read = pairs.by_token() if config.length_normalised else pairs
    losses_B = torch.zeros_like(pairs.chosen_B)
    for name, weight in config.weighted_losses():
        # The losses that are by token by themselves divide once.
        own = pairs if name in ("ipo", "simpo", "orpo") else read
        losses_B = losses_B + weight * LOSSES[name](own, config)
    loss = losses_B.sum() * weights.pair
    nll = -pairs.chosen_B.sum()
    if config.sft_weight:
        loss = loss + config.sft_weight * weights.token * nll
    metrics = pair_metrics(pairs, config) | {
        "loss": (loss.detach(), weights.share),
        "sft_loss": (nll.detach(), float(pairs.chosen_lengths_B.sum())),
    }
    return Loss(loss, metrics)


@torch.no_grad()
def pair_metrics(pairs: PairLogProbs, config: PreferenceConfig) -> dict[str, tuple[Tensor | float, float]]:
    """Implicit rewards beta * log-ratio of both sides, their margin and how often it is right (a tie counts half).

    Without a reference the rewards are beta * log-probability by token.
    """
    read = pairs if config.needs_reference and not config.length_normalised else pairs.by_token()
    chosen_B, rejected_B = config.beta * read.chosen_ratio_B, config.beta * read.rejected_ratio_B
    right_B = ((chosen_B > rejected_B).float() + (chosen_B >= rejected_B).float()) / 2
    sums = {
        "accuracy": right_B,
        "margin": chosen_B - rejected_B,
        "reward_chosen": chosen_B,
        "reward_rejected": rejected_B,
        "logprob_chosen": pairs.chosen_B,
        "logprob_rejected": pairs.rejected_B,
    }
    return {name: (value_B.sum(), len(value_B)) for name, value_B in sums.items()}


def _smoothed(logits_B: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(logits_B) - smoothing * F.logsigmoid(-logits_B)


def _log_odds(logprobs_B: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, exact at both ends (Mächler, 2012); a sure thing has the odds of 1 - 1e-6."""
    logprobs_B = logprobs_B.clamp_max(-1e-6)
    likely_B = logprobs_B > -0.6931
    # Each branch gets a harmless number where the other one is taken: where() multiplies a gradient of inf by 0.
    high_B = logprobs_B.masked_fill(~likely_B, -0.5)
    low_B = logprobs_B.masked_fill(likely_B, -1.0)
    return logprobs_B - torch.where(likely_B, (-high_B.expm1()).log(), (-low_B.exp()).log1p())
