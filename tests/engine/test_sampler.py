"""Sampling: the distribution that is drawn from, its filters, and independence of the batch."""

from array import array
from collections.abc import Callable

import pytest
import torch

from ernie45.config.errors import RequestError
from ernie45.config.sampling import Grammar, SamplingParams, ThinkingBudget
from ernie45.engine import sampler
from ernie45.engine.history import History
from ernie45.engine.sampler import Draw, distribution, sample, sample_with_logprobs, uniform

CASES = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(top_k=4),
    SamplingParams(top_p=0.7),
    SamplingParams(temperature=2.0, top_k=9, top_p=0.9),
    SamplingParams(top_k=1),
    SamplingParams(min_p=0.2),
    SamplingParams(temperature=0.7, top_p=0.95, min_p=0.05),
    SamplingParams(top_k=6, top_p=0.9, min_p=0.3),
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


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_a_wide_vocabulary_is_drawn_alike_alone_and_in_any_batch(spread: float):
    """Flat rows are sorted whole, sharp ones need the first candidates alone; all share steps with each other."""
    params = [SamplingParams(temperature=0), *CASES]
    draws = [Draw(params[row % len(params)], row, row) for row in range(20)]
    logits_RV = logits(20, width=20011, seed=3) * spread / 2
    together = sample(logits_RV, draws).tolist()
    assert [sample(logits_RV[row : row + 1], [draws[row]]).item() for row in range(20)] == together
    assert all(distribution(logits_RV[row : row + 1], [draws[row]])[0, token] > 0 for row, token in enumerate(together))


def test_a_wide_vocabulary_follows_the_distribution():
    """Chi-square over eight equally likely groups of tokens, for the draw in two steps and for candidates."""
    logits_V = logits(1, width=5000, seed=4)[0]
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=200), SamplingParams(min_p=0.01)):
        expected_V = distribution(logits_V[None], [Draw(params, 0, 0)])[0]
        group_V = (expected_V.cumsum(0) * 8).long().clamp_max(7)
        num_draws = 2000
        tokens_R = sample(logits_V.repeat(num_draws, 1), [Draw(params, 9, place) for place in range(num_draws)])
        assert (expected_V[tokens_R] > 0).all()
        shares = torch.zeros(8, dtype=torch.float64).index_add_(0, group_V, expected_V) * num_draws
        counts = group_V[tokens_R].bincount(minlength=8)
        assert ((counts - shares) ** 2 / shares).sum().item() < CHI_SQUARE[7], params


def test_greedy_is_argmax():
    logits_RV = logits(50, width=1000).round()  # many equal ones
    expected_R = torch.tensor([row.index(max(row)) for row in logits_RV.tolist()])
    assert torch.equal(sample(logits_RV, [Draw(SamplingParams(temperature=0), 0, 0)] * 50), expected_R)


def test_a_draft_is_right_where_its_tokens_are_those_drawn_without_it():
    params = SamplingParams(temperature=1, frequency_penalty=1.5, repetition_penalty=1.2, bad_words=((3, 4),), min_tokens=4)
    logits_RV = logits(6, width=9, seed=5)
    tokens = array("q", [1, 3])
    history = History(params, tokens, 2, 9)
    for row in range(6):
        tokens.append(int(sample(logits_RV[row : row + 1].clone(), [Draw(params, 7, 2 + row, history)])))
    draft = tuple(tokens[2:])
    fresh = History(params, array("q", [1, 3]), 2, 9)
    draws = [Draw(params, 7, 2 + row, fresh, draft[:row]) for row in range(6)]
    assert tuple(sample(logits_RV, draws).tolist()) == draft


def test_logprobs_are_the_models_own_and_only_for_those_who_ask():
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias=((4, 100.0),), logprobs=1)
    history = History(params, array("q", [0]), 1, 12)
    logits_RV = logits(3)
    expected_RV = logits_RV.double().log_softmax(-1)
    draws = [Draw(SamplingParams(), 1, 1), Draw(params, 1, 1, history), Draw(SamplingParams(logprobs=0), 2, 1)]
    token_ids, found = sample_with_logprobs(logits_RV, draws)
    assert found[0] is None
    assert token_ids[1] == 4, "the bias decides"
    for row in (1, 2):
        entry = found[row]
        assert entry is not None
        assert entry.token_id == token_ids[row]
        assert entry.logprob == pytest.approx(expected_RV[row, token_ids[row]].item(), abs=1e-5)
        assert len(entry.top) == 2 - row
    assert sample_with_logprobs(logits(3), [Draw(SamplingParams(), 1, 1)] * 3)[1] == []


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
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens \(5\) must be at most max_tokens \(4\)"),
        ({"min_p": 1.1}, r"min_p \(1.1\) must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, r"repetition_penalty \(0\) must be a number above 0"),
        ({"frequency_penalty": 2.1}, r"frequency_penalty \(2.1\) must be a number from -2 to 2"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": ((1, 101),)}, r"logit_bias \(101\) must be a number from -100 to 100"),
        ({"logit_bias": ((-1, 1),)}, "logit_bias"),
        ({"logit_bias": (5,)}, "logit_bias"),
        ({"bad_words": ((),)}, "bad_words"),
        ({"bad_words": ((1, -2),)}, "bad_words"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"grammar": Grammar(kind="regex", text="a")}, r"stop_token_ids \(\[\]\) must not be empty beside a grammar"),
        (
            {
                "grammar": Grammar(kind="regex", text="a"),
                "stop_token_ids": (1,),
                "thinking": ThinkingBudget(max_tokens=1, end_token_ids=(5,)),
            },
            r"grammar.after \(None\) must be the last of thinking.end_token_ids \(5\)",
        ),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThinkingBudget(max_tokens=-1, end_token_ids=(1,)), "thinking.max_tokens"),
        (lambda: ThinkingBudget(max_tokens=1, end_token_ids=()), r"thinking.end_token_ids \(\[\]\) must end with"),
        (lambda: ThinkingBudget(max_tokens=1, end_token_ids=(2, 1, 2)), "nowhere else"),
        (lambda: Grammar(kind="xml", text="a"), r"grammar.kind \('xml'\) must be one of json_schema, regex, lark"),  # pyright: ignore[reportArgumentType]
        (lambda: Grammar(kind="regex", text=""), r"grammar.text \(0 characters\)"),
        (lambda: Grammar(kind="regex", text="a" * (2**18 + 1)), "shorten"),
        (lambda: Grammar(kind="regex", text="a", after=-1), "grammar.after"),
    ],
)
def test_bad_budgets_and_grammars_are_refused(make: Callable[[], object], message: str):
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logprobs": 21}, r"logprobs \(21\) must be at most 20"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logit_bias": ((100, 1.0),)}, r"logit_bias \(100\) must be ids from 0 to 99"),
        ({"bad_words": ((1, 100),)}, "bad_words"),
        ({"stop_token_ids": (100,)}, "stop_token_ids"),
        ({"thinking": ThinkingBudget(max_tokens=1, end_token_ids=(100,))}, "thinking.end_token_ids"),
        ({"grammar": Grammar(kind="regex", text="a", after=100), "stop_token_ids": (1,)}, "grammar.after"),
    ],
)
def test_what_a_model_does_not_have_is_refused(values: dict, message: str):
    SamplingParams(**values).check_model(101, 21)
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values).check_model(100, 20)
