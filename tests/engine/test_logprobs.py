"""Log-probabilities of single rows against torch's own log_softmax in float64."""

import numpy as np
import torch

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams, TokenLogprob
from ernie45.engine import logprobs
from ernie45.engine.logprobs import prompt_logprobs, token_logprobs
from ernie45.engine.request import Request


def test_equal_those_of_the_whole_distribution():
    logits_RV = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 4
    expected_RV = logits_RV.double().log_softmax(-1)
    token_ids = [row * 2 for row in range(20)]
    num_top = [row % 4 for row in range(20)]
    for row, entry in enumerate(token_logprobs(logits_RV, token_ids, num_top)):
        order = expected_RV[row].argsort(descending=True).tolist()
        assert entry.token_id == token_ids[row]
        assert abs(entry.logprob - expected_RV[row, token_ids[row]].item()) < 1e-5
        assert order[entry.rank - 1] == entry.token_id
        assert [token_id for token_id, _ in entry.top] == order[: num_top[row]]
        assert all(abs(value - expected_RV[row, token_id].item()) < 1e-5 for token_id, value in entry.top)


def test_equal_tokens_share_a_rank():
    logits_RV = torch.tensor([[0.0, 2.0, 2.0, 1.0]]).expand(4, -1)
    assert [entry.rank for entry in token_logprobs(logits_RV, [0, 1, 2, 3], [0] * 4)] == [4, 1, 1, 3]


def test_what_was_told_before_a_preemption_is_not_told_again():
    entries = [TokenLogprob(place, -1.0, 1) for place in range(1, 10)]
    inputs = ModelInput(
        token_ids=np.arange(10),
        is_vision=np.zeros(10, dtype=bool),
        positions=np.zeros((10, 3), dtype=np.int64),
        patches=np.zeros((0, 12), dtype=np.uint8),
        media=(),
        next_position=10,
    )
    request = Request(request_id="1", inputs=inputs, params=SamplingParams(prompt_logprobs=0))
    for first, end in ((1, 5), (1, 3), (3, 7), (7, 10)):  # two chunks, the second one lost and computed in other pieces
        assert request.owes_prompt_logprobs
        request.extend_prompt_logprobs(first, entries[first - 1 : end - 1])
    assert request.prompt_logprobs == [None, *entries]
    assert not request.owes_prompt_logprobs


def test_a_prompt_never_has_more_logits_than_a_few_rows():
    num_rows: list[int] = []

    def head(hidden_RD: torch.Tensor) -> torch.Tensor:
        num_rows.append(len(hidden_RD))
        return hidden_RD

    hidden_TD = torch.randn(150, 9, generator=torch.Generator().manual_seed(0))
    found = prompt_logprobs(hidden_TD, head, [3] * 150, 2)
    assert found == token_logprobs(hidden_TD, [3] * 150, [2] * 150)
    assert num_rows == [logprobs.ROWS_AT_ONCE, logprobs.ROWS_AT_ONCE, 150 - 2 * logprobs.ROWS_AT_ONCE]
