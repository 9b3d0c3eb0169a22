"""Penalties, biases, bans and forced tokens against a slow twin in plain Python, for any history and draft."""

import math
from array import array
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.sampling import SamplingParams, ThinkingBudget
from ernie45.engine.history import History
from ernie45.engine.sampler import Draw, processed, sample

VOCAB = 8
ids = st.integers(0, VOCAB - 1)
sequences = st.lists(ids, max_size=12)


def slow_twin(logits: list[float], params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """What `SamplingParams` says, word for word, in float64."""
    if params.thinking is not None and params.thinking.end_id not in answer and len(answer) >= params.thinking.max_tokens:
        forced = params.thinking.end_token_ids[len(answer) - params.thinking.max_tokens]
        return [0.0 if token == forced else -math.inf for token in range(VOCAB)]
    result = []
    for token, logit in enumerate(logits):
        if token in prompt or token in answer:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * answer.count(token)
        logit -= params.presence_penalty * (token in answer)
        result.append(logit + sum(value for biased, value in params.logit_bias if biased == token))
    banned = set(params.stop_token_ids) if len(answer) < params.min_tokens else set()
    for word in params.bad_words:
        if answer[len(answer) - len(word) + 1 :] == list(word[:-1]) and len(answer) >= len(word) - 1:
            banned.add(word[-1])
    if len(banned) == VOCAB:
        return result
    return [-math.inf if token in banned else logit for token, logit in enumerate(result)]


@st.composite
def parameters(draw: st.DrawFn) -> SamplingParams:
    thinking = st.builds(
        lambda budget, before: ThinkingBudget(max_tokens=budget, end_token_ids=(*before, 7)),
        st.integers(0, 14),
        st.lists(st.integers(0, 6), max_size=2),
    )
    return SamplingParams(
        temperature=draw(st.sampled_from([0, 1])),
        min_tokens=draw(st.integers(0, 12)),
        repetition_penalty=draw(st.sampled_from([1, 0.5, 1.3, 4])),
        frequency_penalty=draw(st.sampled_from([0, 0.7, -2])),
        presence_penalty=draw(st.sampled_from([0, -0.3, 2])),
        logit_bias=tuple(draw(st.lists(st.tuples(ids, st.sampled_from([-100.0, 0.5, 100.0])), max_size=4))),
        bad_words=tuple(map(tuple, draw(st.lists(st.lists(ids, min_size=1, max_size=3), max_size=9)))),
        stop_token_ids=tuple(draw(st.lists(ids, max_size=2))),
        thinking=draw(st.none() | thinking),
    )


rows = st.lists(st.tuples(parameters(), sequences, sequences, st.integers(0, 3)), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(rows, st.integers(0, 2**16))
def test_equals_the_slow_twin(rows: list, seed: int):
    """Rows of any requests together; the last tokens of each answer as a draft; histories that have seen all or nothing."""
    logits_RV = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    draws, expected, histories = [], [], []
    for (params, prompt, answer, num_draft), row_V in zip(rows, logits_RV.tolist(), strict=True):
        if params.thinking is not None and 7 not in answer:  # what is forced has come
            forced = params.thinking.end_token_ids[: max(len(answer) - params.thinking.max_tokens, 0)]
            answer = [*answer[: params.thinking.max_tokens], *forced]
        num_real = max(len(answer) - num_draft, 0)
        tokens = array("q", [*prompt, *answer[:num_real]])
        history = History(params, tokens, len(prompt), VOCAB)
        draws.append(Draw(params, 0, len(prompt) + len(answer), history, tuple(answer[num_real:])))
        expected.append(slow_twin(row_V, params, prompt, answer))
        histories.append((tokens, history, answer[num_real:]))
    before_RV = logits_RV.clone()
    torch.testing.assert_close(processed(logits_RV, draws), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    for tokens, _, draft in histories:  # the drafts are accepted: the same histories, further on
        tokens.extend(draft)
    again = [draw._replace(draft=()) for draw in draws]
    torch.testing.assert_close(processed(before_RV, again), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_nothing_is_touched_or_copied_when_nobody_asks():
    logits_RV = torch.randn(3, VOCAB)
    assert processed(logits_RV, [Draw(SamplingParams(), 0, row) for row in range(3)]) is logits_RV


def test_half_precision_is_not_used_for_penalties():
    params = SamplingParams(temperature=0, frequency_penalty=0.001)
    history = History(params, array("q", [0, 1]), 1, 2)
    logits_RV = torch.tensor([[100.0, 100.0]], dtype=torch.bfloat16)
    found_RV = processed(logits_RV, [Draw(params, 0, 2, history)])
    assert found_RV.dtype is torch.float32
    assert found_RV[0, 1] < found_RV[0, 0]


@pytest.mark.parametrize("temperature", [0, 1])
def test_bad_words_and_early_ends_are_never_drawn(temperature: float):
    params = SamplingParams(temperature=temperature, bad_words=((1, 2), (3,)), stop_token_ids=(0,), min_tokens=20)
    tokens = array("q", [1])
    history = History(params, tokens, 1, 5)
    for place in range(1, 60):
        logits_RV = torch.tensor([[3.0, 1.0, 3.0, 3.0, -3.0]])
        tokens.append(int(sample(logits_RV, [Draw(params, 1, place, history)])))
    answer = list(tokens[1:])
    assert 3 not in answer
    assert (1, 2) not in pairwise(answer)
    assert 0 not in answer[:20]
    assert answer[0] == 2 or temperature, "the prompt's 1 begins no bad word"
    assert 0 in answer[20:]


@pytest.mark.parametrize("temperature", [0, 1e-30, 1])
@pytest.mark.parametrize("penalty", [5e-324, 1e-38, 1e300])
def test_an_extreme_repetition_penalty_leaves_something_to_draw(penalty: float, temperature: float):
    """As float32 it is 0 or infinite; a row without a sane distribution ended the engine for all."""
    params = SamplingParams(temperature=temperature, repetition_penalty=penalty)
    history = History(params, array("q", [0, 1, 2]), 1, 4)
    logits_RV = torch.tensor([[0.0, 2.0, -3.0, 1.0]])
    draws = [Draw(params, 1, 3, history)]
    assert processed(logits_RV.clone(), draws).isfinite().all()
    assert int(sample(logits_RV, draws)) == (1 if penalty < 1 else 3)
