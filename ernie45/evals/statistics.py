"""How sure a score is: intervals for means, for differences of two models on the same questions, and pass@k.

Knows nothing about models or tasks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
_RESAMPLES = 10_000
_ENTRIES_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Of the mean over questions. Wilson's where all values lie in [0, 1], else by bootstrap. At least one value.

    Wilson's is meant for shares of right and wrong; values between 0 and 1 vary less than these at the same mean, so that the
    interval is then too wide rather than too narrow.
    """
    mean = math.fsum(values) / len(values)
    if all(0 <= value <= 1 for value in values):
        return Interval(mean, *wilson(mean, len(values)))
    return bootstrap(values)


def wilson(share: float, num: int) -> tuple[float, float]:
    """95 % interval of a share of `num` tries. Source: Wilson, 1927."""
    centre = (share + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z / (1 + _Z**2 / num) * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """95 % percentile interval of the mean over 10,000 resamples of the questions. Of differences it is the paired bootstrap.

    Source: Efron, 1979.
    """
    whole = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    rows = max(1, _ENTRIES_AT_ONCE // len(whole))
    means = [
        whole[rng.integers(0, len(whole), (min(rows, _RESAMPLES - start), len(whole)))].mean(axis=1)
        for start in range(0, _RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(whole.mean()), float(low), float(high))


def pass_at_k(num: int, right: int, k: int) -> float:
    """Chance that one of k answers out of `num`, of which `right` are right, is right: 1 - C(num - right, k) / C(num, k).

    Unbiased. Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021.
    """
    assert 1 <= k <= num, (k, num)
    return 1.0 - math.comb(num - right, k) / math.comb(num, k)
