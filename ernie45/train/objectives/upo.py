"""UPO: a policy objective and a preference term over pairs, in one batch.

Knows nothing about models, engines or where pairs come from. docs/upo.md says what was chosen and why.
"""

import torch
from torch import Tensor

from ernie45.config.policy import PairTermConfig
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.policy import PolicyOutputs, sequence_sums
from ernie45.train.objectives.preference import PairLogProbs, PairWeights, preference_loss
from ernie45.train.policy_batch import PolicyBatch


def pair_loss(outputs: PolicyOutputs, batch: PolicyBatch, config: PairTermConfig) -> Loss:
    """weight * mean over the step's pairs of -log sigmoid(beta * (log-ratio of the better - log-ratio of the worse answer)).

    Log-ratios are of whole answers, or by token, to the policy before the rollout or to the initial model. With `sft_weight`
    also the better answers' cross entropy by token. A shard without pairs has loss 0. Source: ERNIE 4.5's unified preference
    optimisation as its report describes it, whose formula is not public; DPO's term (Rafailov et al., 2023).
    """
    pairs = pairs_of(outputs.logprobs_R, batch, config.reference)
    weights = PairWeights(batch.pair_weight, batch.token_weight, batch.share)
    loss, metrics = preference_loss(pairs, weights, config.preference)
    if not len(batch.pairs_Q2):
        metrics = dict.fromkeys(metrics, (0.0, 0.0))
    loss = config.weight * loss
    renamed = {f"pair_{name}": value for name, value in metrics.items() if name != "loss"}
    return Loss(loss, renamed | {"pair_loss": (loss.detach(), batch.share)})


def pairs_of(logprobs_R: Tensor, batch: PolicyBatch, reference: str) -> PairLogProbs:
    """Sums over the answers of each pair, with gradient on the policy's side alone."""
    if reference == "frozen":
        assert batch.reference_R is not None, "the initial model's log-probabilities are missing"
        compared_R = batch.reference_R
    else:
        compared_R = logprobs_R.detach() if batch.old_R is None else batch.old_R
    policy_B, reference_B = sequence_sums(logprobs_R, batch), sequence_sums(compared_R.to(logprobs_R.dtype), batch)
    lengths_B = sequence_sums(torch.ones_like(logprobs_R), batch)
    better_Q, worse_Q = batch.pairs_Q2.unbind(1)
    return PairLogProbs(
        chosen_B=policy_B[better_Q],
        rejected_B=policy_B[worse_Q],
        reference_chosen_B=reference_B[better_Q],
        reference_rejected_B=reference_B[worse_Q],
        chosen_lengths_B=lengths_B[better_Q],
        rejected_lengths_B=lengths_B[worse_Q],
        margins_B=torch.ones_like(better_Q, dtype=logprobs_R.dtype),
    )
