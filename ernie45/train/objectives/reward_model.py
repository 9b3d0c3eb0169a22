"""The loss of a reward model: the chosen answer's reward above the rejected one's.

Knows nothing about models or where pairs come from. Source: Bradley and Terry (1952) as in Ouyang et al., InstructGPT (2022);
the margin as in Touvron et al., Llama 2 (2023); centring of Eisenstein et al. (2023).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.config.reward_model import RewardModelConfig
from ernie45.train.objectives.loss import Loss


def reward_model_loss(rewards_B2: Tensor, margins_B: Tensor, weights: tuple[float, float], config: RewardModelConfig) -> Loss:
    """-log sigmoid(chosen - rejected - margin_weight * margin) + centring * (chosen + rejected)^2, weighted.

    rewards_B2: of the chosen and of the rejected answers. weights: 1 / pairs of the step, and this shard's share of it; over
    all shards the losses add up to the mean over pairs.
    """
    pair_weight, share = weights
    chosen_B, rejected_B = rewards_B2.unbind(1)
    gaps_B = chosen_B - rejected_B
    losses_B = -F.logsigmoid(gaps_B - config.margin_weight * margins_B)
    losses_B = losses_B + config.centring * (chosen_B + rejected_B).square()
    loss = losses_B.sum() * pair_weight
    return Loss(loss, reward_metrics(rewards_B2.detach()) | {"loss": (loss.detach(), share)})


def reward_metrics(rewards_B2: Tensor) -> dict[str, tuple[Tensor | float, float]]:
    """How often the chosen answer has the higher reward (a tie counts half), the gap, and the rewards of both sides."""
    chosen_B, rejected_B = rewards_B2.unbind(1)
    right_B = ((chosen_B > rejected_B).float() + (chosen_B >= rejected_B).float()) / 2
    sums = {"accuracy": right_B, "margin": chosen_B - rejected_B, "reward_chosen": chosen_B, "reward_rejected": rejected_B}
    return {name: (value_B.sum(), len(value_B)) for name, value_B in sums.items()}


def init_reward_head(weight_D: Tensor, generator: torch.Generator) -> None:
    """Normal with variance 1 / (D + 1), as in Stiennon et al. (2020)."""
    with torch.no_grad():
        weight_D.normal_(0.0, (weight_D.shape[-1] + 1) ** -0.5, generator=generator)
