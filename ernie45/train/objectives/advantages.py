"""Advantages: how much better an answer was than expected, from the rewards of its group or from a critic.

Knows nothing about tokens' probabilities or how a policy is improved.
"""

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-4
"""Added to a standard deviation before it divides, as in TRL."""


def group_advantages(rewards_G: np.ndarray, kind: str) -> np.ndarray:
    """fp64 [G] for the answers to one prompt; nan rewards (there is none) count nothing and get 0.

    group: (r - mean) / (std + 1e-4), std with G - 1 (GRPO; Shao et al., DeepSeekMath, 2024). group_mean: r - mean (Dr. GRPO;
    Liu et al., Understanding R1-Zero-Like Training, 2025). leave_one_out: r less the mean of the others (RLOO; Ahmadian et al.,
    Back to Basics, 2024).
    A group of equal rewards, or with fewer than two, has advantage 0.
    """
    known = ~np.isnan(rewards_G)
    count = np.count_nonzero(known)
    out = np.zeros(len(rewards_G))
    if count < 2 or spread(rewards_G) == 0:
        return out
    rewards = rewards_G[known]
    centred = rewards - rewards.mean()
    if kind == "group":
        centred /= rewards.std(ddof=1) + EPSILON
    elif kind == "leave_one_out":
        centred *= count / (count - 1)
    else:
        assert kind == "group_mean", kind
    out[known] = centred
    return out


def spread(rewards_G: np.ndarray) -> float:
    """Standard deviation (with G - 1) of the rewards there are; 0 for fewer than two, and exactly 0 for equal ones."""
    rewards = rewards_G[~np.isnan(rewards_G)]
    if len(rewards) < 2 or rewards.min() == rewards.max():
        return 0.0
    return float(rewards.std(ddof=1))


def generalised_advantages(rewards_N: np.ndarray, values_N: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """GAE [N] of one finished answer: sum over k of (gamma lam)^k delta_(t+k), delta_t = r_t + gamma v_(t+1) - v_t, v_N = 0.

    Its sum with the values is the return that the critic should have said. Source: Schulman et al., 2015.
    """
    out, ahead = np.zeros(len(rewards_N)), 0.0
    for place in reversed(range(len(rewards_N))):
        following = values_N[place + 1] if place + 1 < len(values_N) else 0.0
        ahead = rewards_N[place] + gamma * following - values_N[place] + gamma * lam * ahead
        out[place] = ahead
    return out


def whitened(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All numbers together to mean 0 and standard deviation 1."""
    if not parts:
        return []
    joined = np.concatenate(parts)
    mean, deviation = joined.mean(), joined.std()
    return [(part - mean) / (deviation + 1e-8) for part in parts]


def overlong_penalty(length: int, max_tokens: int, cut_tokens: int) -> float:
    """What an answer's length takes from its reward: nothing up to max_tokens - cut_tokens, then ever more in a straight line,
    1 at max_tokens. Source: DAPO's soft overlong punishment (Yu et al., 2025)."""
    return max(0.0, min(1.0, (length - (max_tokens - cut_tokens)) / cut_tokens))
