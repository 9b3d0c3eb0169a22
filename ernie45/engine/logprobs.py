"""Log-probabilities of given tokens, their ranks, and the likeliest tokens beside them.

Knows nothing about requests or sampling. They are those of the model's own distribution (vLLM's `raw_logprobs`): before
temperature, penalties, filters and grammars.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ernie45.config.sampling import TokenLogprob
from ernie45.engine.blocks import likeliest

# Rows of logits that exist at once for a prompt: 64 x 103,424 x 4 bytes are 26 MB.
ROWS_AT_ONCE = 64


def token_logprobs(logits_RV: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprob]:
    """One entry for each row of raw logits [R, V]: about its token, with so many of the likeliest.

    Equally likely tokens share a rank.
    """
    logprobs_RV = logits_RV.float().log_softmax(-1)
    ids_R1 = torch.tensor(token_ids, device=logits_RV.device)[:, None]
    ranks = (1 + torch.count_nonzero(logits_RV > logits_RV.gather(-1, ids_R1), dim=-1)).tolist()
    chosen = logprobs_RV.gather(-1, ids_R1)[:, 0].tolist()
    best_ids_RC = likeliest(logits_RV, min(max(num_top), logits_RV.shape[1]))
    tops = zip(best_ids_RC.tolist(), logprobs_RV.gather(-1, best_ids_RC).tolist(), strict=True)
    return [
        TokenLogprob(token_id, logprob, rank, tuple(zip(ids[:num], values[:num], strict=True)))
        for token_id, logprob, rank, (ids, values), num in zip(token_ids, chosen, ranks, tops, num_top, strict=True)
    ]


def prompt_logprobs(
    hidden_TD: Tensor, head: Callable[[Tensor], Tensor], token_ids: Sequence[int], num_top: int
) -> list[TokenLogprob]:
    """One entry for each hidden state [T, D]: about the prompt token that follows it. `head` gives logits [R, V] of a few.

    Never more than `ROWS_AT_ONCE` rows of logits exist.
    """
    entries: list[TokenLogprob] = []
    for start in range(0, len(hidden_TD), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(hidden_TD)))
        ids = token_ids[rows]
        entries += token_logprobs(head(hidden_TD[rows]), ids, [num_top] * len(ids))
    return entries
