"""The policy objective: clipped importance ratios times advantages, with KL, mismatch correction and a critic's loss.

Knows nothing about models, engines, rewards or where advantages come from. docs/rlvr.md has the formulas together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.policy import CriticConfig, PolicyConfig
from ernie45.model.moe import RouterOutput
from ernie45.train.objectives.loss import Loss
from ernie45.train.policy_batch import PolicyBatch

Metrics = dict[str, tuple[Tensor | float, float]]


class PolicyOutputs(NamedTuple):
    """logprobs_R, with gradient, and entropies_R of the labels at the sampling temperature; values_R of a critic, if there is
    one; routers of every MoE layer."""

    logprobs_R: Tensor
    entropies_R: Tensor
    values_R: Tensor | None
    routers: list[list[RouterOutput]]


def policy_loss(outputs: PolicyOutputs, batch: PolicyBatch, config: PolicyConfig) -> Loss:
    """sum over labels of weight * (- f * min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_weight * KL).

    rho = pi / pi_old of the token, or the geometric mean over its sequence (`sequence_mean`); without old log-probabilities
    they are pi's own, and rho is 1 with pi's gradient. f: `mismatch_factor`. weight: of `PolicyBatch`: 1 / tokens of the step
    (DAPO, Yu et al., 2025), 1 / (sequences * own tokens) (GRPO, Shao et al., 2024) or 1 / (sequences * max_tokens) (Dr. GRPO).
    PPO's clipping: Schulman et al., 2017; a higher `clip_high`: DAPO; `dual_clip`: Ye et al., 2020.
    """
    logprobs_R = outputs.logprobs_R
    old_R = logprobs_R.detach() if batch.old_R is None else batch.old_R
    log_ratio_R = logprobs_R - old_R
    if config.ratio == "sequence":
        log_ratio_R = sequence_mean(log_ratio_R, batch)
    ratio_R = log_ratio_R.exp()
    losses_R = clipped_losses(ratio_R, batch.advantages_R, config)
    factor_R = mismatch_factor(old_R, batch, config)
    losses_R = losses_R * factor_R
    counted_R = batch.weights_R > 0
    metrics = ratio_metrics(ratio_R, batch, config) | mismatch_metrics(old_R - batch.engine_R, factor_R, counted_R, config)
    if config.kl_weight:
        assert batch.reference_R is not None, "the reference's log-probabilities are missing"
        kl_R = kl_estimate(logprobs_R, batch.reference_R, config.kl_estimator)
        losses_R = losses_R + config.kl_weight * kl_R
        metrics["kl"] = _mean(kl_R, counted_R)
    loss = (losses_R * batch.weights_R).sum()
    metrics |= {"entropy": _mean(outputs.entropies_R, counted_R), "policy_loss": (loss.detach(), batch.share)}
    return Loss(loss, metrics)


def label_weights(lengths: Sequence[int], normalise: str, max_tokens: int) -> list[float]:
    """What each label of a sequence counts, for all sequences of a step: their labels' weights are `PolicyBatch.weights_R`."""
    if normalise == "token":
        return [1 / max(sum(lengths), 1)] * len(lengths)
    if normalise == "sequence":
        return [1 / (len(lengths) * length) for length in lengths]
    assert normalise == "constant", normalise
    return [1 / (len(lengths) * max_tokens)] * len(lengths)


def clipped_losses(ratio_R: Tensor, advantages_R: Tensor, config: PolicyConfig) -> Tensor:
    """- min(rho A, clip(rho) A), rho at most `dual_clip` if there is one: it matters where A is negative."""
    clipped_R = ratio_R.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.dual_clip:
        ratio_R = ratio_R.clamp(max=config.dual_clip)
    return -torch.minimum(ratio_R * advantages_R, clipped_R * advantages_R)


def sequence_mean(values_R: Tensor, batch: PolicyBatch) -> Tensor:
    """Each label gets the mean of its sequence. GSPO's ratio is exp of that of log-ratios (Zheng et al., 2025)."""
    return sequence_sums(values_R, batch)[batch.sequence_R] / _lengths(batch).to(values_R.dtype)[batch.sequence_R]


def sequence_sums(values_R: Tensor, batch: PolicyBatch) -> Tensor:
    """[B], with gradient."""
    return values_R.new_zeros(batch.num_sequences).index_add(0, batch.sequence_R, values_R)


def kl_estimate(logprobs_R: Tensor, reference_R: Tensor, estimator: str) -> Tensor:
    """Of KL(pi, reference), from samples of pi, d = log reference - log pi: k1 -d; k2 d^2 / 2; k3 exp(d) - d - 1.

    As losses: k2's gradient is that of the reverse KL; k3's (GRPO's) nearly that of the forward KL; k1's is 0 on average, its
    value alone is of use. Source: Schulman, Approximating KL Divergence, 2020.
    """
    difference_R = reference_R - logprobs_R
    if estimator == "k1":
        return -difference_R
    if estimator == "k2":
        return difference_R.square() / 2
    assert estimator == "k3", estimator
    return difference_R.expm1() - difference_R


def mismatch_factor(old_R: Tensor, batch: PolicyBatch, config: PolicyConfig) -> Tensor:
    """k = pi_old / pi_engine of the token, or the product over its sequence; without gradient.

    truncate: min(k, high) (truncated importance sampling; Yao et al., Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training, 2025). mask: k inside of low ... high, 0 outside (IcePop; Ling team, Every Step Evolves, 2025).
    """
    if config.mismatch == "none":
        return torch.ones_like(old_R)
    log_k_R = old_R.detach() - batch.engine_R
    if config.mismatch_ratio == "sequence":
        log_k_R = sequence_sums(log_k_R, batch)[batch.sequence_R]
    k_R = log_k_R.exp()
    if config.mismatch == "truncate":
        return k_R.clamp(max=config.mismatch_high)
    return torch.where((k_R >= config.mismatch_low) & (k_R <= config.mismatch_high), k_R, 0.0)


def value_loss(outputs: PolicyOutputs, batch: PolicyBatch, config: CriticConfig) -> Loss:
    """weight / 2 * max((v - return)^2, (v_old + clip(v - v_old) - return)^2), weighted as the policy's labels (PPO)."""
    assert outputs.values_R is not None, "gae needs a critic"
    assert batch.values_R is not None, "gae needs a critic"
    assert batch.returns_R is not None, "gae needs returns"
    errors_R = (outputs.values_R - batch.returns_R).square()
    if config.clip:
        near_R = batch.values_R + (outputs.values_R - batch.values_R).clamp(-config.clip, config.clip)
        errors_R = torch.maximum(errors_R, (near_R - batch.returns_R).square())
    loss = config.weight / 2 * (errors_R * batch.weights_R).sum()
    counted_R = batch.weights_R > 0
    rest_R, target_R = batch.returns_R - outputs.values_R.detach(), batch.returns_R
    metrics: Metrics = {
        "value_loss": (loss.detach(), batch.share),
        "value_error": _mean(rest_R.square(), counted_R),
        "return_square": _mean(target_R.square(), counted_R),
    }
    return Loss(loss, metrics)


def ratio_metrics(ratio_R: Tensor, batch: PolicyBatch, config: PolicyConfig) -> Metrics:
    """Mean ratio, and how many of the labels that count are clipped on either side."""
    ratio_R, counted_R = ratio_R.detach(), batch.weights_R > 0
    low_R = (ratio_R < 1 - config.clip_low) & (batch.advantages_R < 0)
    high_R = (ratio_R > 1 + config.clip_high) & (batch.advantages_R > 0)
    return {
        "ratio": _mean(ratio_R, counted_R),
        "clipped_low": _mean(low_R.float(), counted_R),
        "clipped_high": _mean(high_R.float(), counted_R),
    }


def mismatch_metrics(log_k_R: Tensor, factor_R: Tensor, counted_R: Tensor, config: PolicyConfig) -> Metrics:
    """Of log pi_trainer - log pi_engine: mean and largest size, the estimate k3 of KL(engine, trainer), and the share of labels
    that are masked. The largest one is averaged over shards."""
    log_k_R = log_k_R.detach()[counted_R]
    if not len(log_k_R):
        return dict.fromkeys(("mismatch", "mismatch_max", "mismatch_kl", "masked"), (0.0, 0.0))
    masked = torch.count_nonzero(factor_R[counted_R] == 0)
    return {
        "mismatch": (log_k_R.abs().sum(), len(log_k_R)),
        "mismatch_max": (log_k_R.abs().max(), 1),
        "mismatch_kl": ((log_k_R.expm1() - log_k_R).sum(), len(log_k_R)),
        "masked": (masked if config.mismatch == "mask" else 0.0, len(log_k_R)),
    }


def _lengths(batch: PolicyBatch) -> Tensor:
    return torch.bincount(batch.sequence_R, minlength=batch.num_sequences).clamp_min(1)


def _mean(values_R: Tensor, counted_R: Tensor) -> tuple[Tensor, float]:
    return values_R.detach()[counted_R].sum(), float(torch.count_nonzero(counted_R))
