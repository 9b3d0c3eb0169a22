"""Intervals cover the truth as often as they say, and pass@k is unbiased."""

import itertools

import numpy as np
import pytest

from ernie45.evals.statistics import bootstrap, interval, pass_at_k, wilson


def test_wilson_is_the_published_interval() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    low, high = wilson(1.0, 3)
    assert (low, high) == pytest.approx((0.43850, 1.0), abs=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_intervals_hold_the_truth_19_times_of_20(share: float) -> None:
    rng = np.random.default_rng(0)
    draws = rng.random((2000, 60)) < share
    held = [low <= share <= high for _, low, high in (interval(list(map(float, row))) for row in draws)]
    assert 0.93 < np.mean(held) < 0.985


def test_values_beyond_shares_are_resampled() -> None:
    values = list(np.random.default_rng(1).normal(3.0, 2.0, 200))
    found = interval(values)
    half = 1.96 * np.std(values) / 200**0.5
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.05)
    assert bootstrap([2.0] * 9) == (2.0, 2.0, 2.0)
    assert bootstrap(values) == bootstrap(values)


def test_pass_at_k_is_the_mean_over_all_draws() -> None:
    right = [True, False, False, True, False]
    for k in range(1, 6):
        exact = np.mean([any(draw) for draw in itertools.combinations(right, k)])
        assert pass_at_k(5, 2, k) == pytest.approx(exact)
    assert pass_at_k(4, 0, 2) == 0.0
    assert pass_at_k(4, 4, 4) == 1.0
