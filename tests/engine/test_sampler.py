"""Sampling: the distribution that is drawn from, its filters, and independence of the batch."""

import pytest
import torch

from ernie45.config.errors import RequestError
from ernie45.config.sampling import SamplingParams
from ernie45.engine import sampler
from ernie45.engine.sampler import Draw, distribution, sample, uniform

CASES = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(top_k=4),
    SamplingParams(top_p=0.7),
    SamplingParams(temperature=2.0, top_k=9, top_p=0.9),
    SamplingParams(top_k=1),
]
# Quantiles of chi-square at 99.9 %, by degrees of freedom.
CHI_SQUARE = (1e-9, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26)


def logits(rows: int, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("params", CASES)
@pytest.mark.parametrize("num_candidates", [(5,), (2, 5), (128,)])
def test_tokens_follow_the_distribution(
    params: SamplingParams, num_candidates: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    """Chi-square against the slow twin; with so few candidates, the path that sorts whole rows takes part too."""
    monkeypatch.setattr(sampler, "NUM_CANDIDATES", num_candidates)
    num_draws = 4000
    logits_RV = logits(1).expand(num_draws, -1)
    tokens_R = sample(logits_RV, [Draw(params, 5, place) for place in range(num_draws)])
    expected_V = distribution(logits(1), [Draw(params, 0, 0)])[0] * num_draws
    counts_V = tokens_R.bincount(minlength=12)
    assert counts_V[expected_V == 0].sum() == 0
    kept_V = expected_V > 0
    chi_square = ((counts_V - expected_V)[kept_V] ** 2 / expected_V[kept_V]).sum().item()
    assert chi_square < CHI_SQUARE[int(kept_V.sum()) - 1], chi_square


def test_a_row_is_the_same_alone_and_in_any_batch():
    params = [SamplingParams(temperature=0), *CASES]
    draws = [Draw(params[row % len(params)], row, 7 * row) for row in range(40)]
    logits_RV = logits(40, width=3000)
    together = sample(logits_RV, draws).tolist()
    assert [sample(logits_RV[row : row + 1], [draws[row]]).item() for row in range(40)] == together
    assert sample(logits_RV.flip(0), draws[::-1]).tolist() == together[::-1]


def test_seed_and_place_both_matter():
    logits_RV = torch.zeros(1, 1000)
    tokens = {sample(logits_RV, [Draw(SamplingParams(), seed, place)]).item() for seed in range(8) for place in range(8)}
    assert len(tokens) > 50


def test_uniform_is_in_range_and_even():
    values = [uniform(3, place) for place in range(4000)]
    assert 0 <= min(values) < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.02


def test_the_ends_of_the_range_are_tokens_with_weight(monkeypatch: pytest.MonkeyPatch):
    logits_RV = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for u, plain, likeliest_first in ((0.0, 1, 2), (1 - 2.0**-53, 2, 1)):
        monkeypatch.setattr(sampler, "uniform", lambda seed, place, u=u: u)
        assert sample(logits_RV, [Draw(SamplingParams(), 0, 0)]).item() == plain
        assert sample(logits_RV, [Draw(SamplingParams(top_p=0.99), 0, 0)]).item() == likeliest_first


def test_greedy_takes_the_first_of_equals_and_tiny_temperatures_are_greedy():
    logits_RV = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert sample(logits_RV, [Draw(SamplingParams(temperature=0), 0, 0)]).item() == 1
    big = torch.tensor([[1e4, -1e4, 9.9e3]])
    assert sample(big, [Draw(SamplingParams(temperature=1e-30), 0, 0)]).item() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, r"temperature \(-1\) must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, r"top_p \(0\) must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, r"top_k \(-1\) must be a whole number of at least 0"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, r"max_tokens \(0\) must be a whole number of at least 1"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop_token_ids": ("a",)}, "stop_token_ids"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values)
