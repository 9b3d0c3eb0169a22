"""Logits to tokens, for all rows of a step at once.

Knows nothing about requests' text, pages or why a row is sampled.

A row's token depends on its logits, its parameters, its seed, its place in the sequence and the tokens before it, and on
nothing beside it: the only randomness is one number in [0, 1) computed on the host from (seed, place), at which the row's
cumulative distribution is read off. So a request samples the same tokens alone, in any batch and after preemption, and the
token at each place behind a draft is the one that would have been drawn without a draft.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.sampling import SamplingParams, TokenLogprob
from ernie45.engine.blocks import BLOCK, block_of, first_argmax, in_blocks, likeliest
from ernie45.engine.history import History
from ernie45.engine.logprobs import token_logprobs
from ernie45.engine.penalties import Row, apply_processors
from ernie45.engine.request import Request

# Rows with a filter are cut to so many candidates; a row whose filters may keep more tries the next number, and is sorted
# whole behind the last. Which of them serves a row may not depend on the batch, or ties could fall differently.
NUM_CANDIDATES = (128, 2048)


class Draw(NamedTuple):
    """How to sample one row.

    place    the index in its sequence of the token to be drawn.
    history  of the sequence's tokens; must be given where `params.needs_tokens` or has a logit_bias.
    draft    proposed tokens between those of the history and this place: `place` is their number behind the last real one.
    """

    params: SamplingParams
    seed: int
    place: int
    history: History | None = None
    draft: tuple[int, ...] = ()


_UNSCALED = Draw(SamplingParams(), 0, 0)


def draw_for(request: Request, place: int, draft: tuple[int, ...] = ()) -> Draw:
    """How to sample a request's token at `place`; with a draft, as if these tokens had been drawn already."""
    history = request.history
    assert history is None or request.num_tokens + len(draft) == place, "its tokens decide the next one, and must be known"
    return Draw(request.params, request.seed, place, history, draft)


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) with 53 random bits, a pure function of its arguments."""
    digest = blake2b(seed.to_bytes(8, "little") + place.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """One token id for each row, int64 [R], on the device of the logits, which may be overwritten.

    To verify a draft of a request, give one row for each of its places, each with the draft up to there: a drafted token
    is right exactly if it is the one drawn here.
    """
    assert len(logits_RV) == len(draws), (logits_RV.shape, len(draws))
    logits_RV = processed(logits_RV, draws)
    greedy = [row for row, draw in enumerate(draws) if draw.params.temperature == 0]
    if len(greedy) == len(draws):
        return first_argmax(logits_RV)
    plain = [row for row, draw in enumerate(draws) if draw.params.temperature > 0 and not _filtered(draw.params)]
    filtered = [row for row, draw in enumerate(draws) if draw.params.temperature > 0 and _filtered(draw.params)]
    if len(plain) == len(draws):
        return _sample_plain(logits_RV, draws)
    if len(filtered) == len(draws):
        return _sample_filtered(logits_RV, draws)
    tokens_R = torch.empty(len(draws), dtype=torch.int64, device=logits_RV.device)
    if greedy:
        tokens_R[greedy] = first_argmax(logits_RV[greedy])
    if plain:
        tokens_R[plain] = _sample_plain(logits_RV[plain], [draws[row] for row in plain])
    if filtered:
        tokens_R[filtered] = _sample_filtered(logits_RV[filtered], [draws[row] for row in filtered])
    return tokens_R


def sample_with_logprobs(logits_RV: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprob | None]]:
    """`sample` on the host, and beside each token its log-probability where asked for; no such list if nobody asks."""
    asking = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if not asking:
        return sample(logits_RV, draws).tolist(), []
    raw_RV = logits_RV[asking]  # a copy: the model's own distribution, before anybody changes it
    if any(draws[row].params.scaled_logprobs for row in asking):
        raw_RV = _scaled(raw_RV, [draws[row] if draws[row].params.scaled_logprobs else _UNSCALED for row in asking])
    token_ids: list[int] = sample(logits_RV, draws).tolist()
    entries: list[TokenLogprob | None] = [None] * len(draws)
    told = token_logprobs(raw_RV, [token_ids[row] for row in asking], [draws[row].params.logprobs or 0 for row in asking])
    for row, entry in zip(asking, told, strict=True):
        entries[row] = entry
    return token_ids, entries


def processed(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits behind penalties, biases and constraints; the same tensor, perhaps overwritten, or a float32 copy."""
    rows = [
        Row(index, draw.params, draw.history.counts(draw.draft), draw.history.constraint(draw.draft))
        for index, draw in enumerate(draws)
        if draw.history is not None
    ]
    if rows:
        logits_RV = logits_RV.float()
        apply_processors(logits_RV, rows)
    return logits_RV


def distribution(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The distribution each row is drawn from, behind all processors and filters, float64 [R, V]: the slow twin of `sample`."""
    logits_RV = processed(logits_RV.float().clone(), draws)
    probabilities_RV = _scaled(logits_RV, draws).double().softmax(-1)
    for row_V, logits_V, draw in zip(probabilities_RV, logits_RV, draws, strict=True):
        order_V = logits_V.argsort(descending=True, stable=True)
        kept = order_V[: 1 if draw.params.temperature == 0 else draw.params.top_k or None]
        mass = row_V[kept] / row_V[kept].sum()
        kept = kept[mass.cumsum(0) - mass < draw.params.top_p]
        kept = kept[row_V[kept] >= draw.params.min_p * row_V[kept[0]]]
        keep_V = torch.zeros_like(row_V).index_fill_(0, kept, 1.0)
        row_V *= keep_V
        row_V /= row_V.sum()
    return probabilities_RV


def _filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _scaled(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    if all(draw.params.temperature == 1 for draw in draws):
        return logits_RV.float()
    # A temperature so small that logits overflow would make inf - inf; 1e-6 is already greedy for fp32 logits.
    temperatures = [max(draw.params.temperature, 1e-6) for draw in draws]
    return logits_RV.float() / torch.tensor(temperatures, device=logits_RV.device)[:, None]


def _sample_plain(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Rows without a filter: the block in which the cumulative distribution passes u, then the token in it."""
    weights_RNB = in_blocks(_scaled(logits_RV, draws).softmax(-1), 0.0)
    cumulative_RN = weights_RNB.sum(-1).double().cumsum(-1)
    target_R1 = _uniforms(draws, cumulative_RN) * cumulative_RN[:, -1:]
    index_R1 = _column(cumulative_RN, target_R1)
    before_R1 = torch.where(index_R1 > 0, cumulative_RN.gather(1, (index_R1 - 1).clamp_min(0)), 0.0)
    inside_RB = block_of(weights_RNB, index_R1).double().cumsum(-1)
    return (index_R1 * BLOCK + _column(inside_RB, target_R1 - before_R1))[:, 0]


def _sample_filtered(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Rows with filters: candidates in falling order, cut, then read off."""
    scaled_RV = _scaled(logits_RV, draws)
    probabilities_RV = scaled_RV.softmax(-1)
    tokens_R = torch.empty(len(draws), dtype=torch.int64, device=logits_RV.device)
    rows = list(range(len(draws)))
    for width in (*NUM_CANDIDATES, logits_RV.shape[1]):
        some = rows if len(rows) < len(draws) else slice(None)
        ids_RC = likeliest(scaled_RV[some], width)
        probabilities_RC = probabilities_RV[some].gather(-1, ids_RC)
        of_rows = [draws[row] for row in rows]
        tokens_R[some] = _cut_and_read_off(probabilities_RC, ids_RC, of_rows)
        if ids_RC.shape[1] == logits_RV.shape[1]:
            break
        edges = torch.stack([probabilities_RC.sum(-1), probabilities_RC[:, 0], probabilities_RC[:, -1]], -1).tolist()
        rows = [row for row, edge in zip(rows, edges, strict=True) if not _suffices(draws[row].params, width, *edge)]
        if not rows:
            break
    return tokens_R


def _suffices(params: SamplingParams, width: int, mass: float, first: float, last: float) -> bool:
    """Whether the `width` likeliest tokens contain all that the filters keep. mass: their probability together."""
    if params.top_k:
        return params.top_k <= width
    return mass >= params.top_p or last < params.min_p * first


def _cut_and_read_off(probabilities_RC: Tensor, ids_RC: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Apply top_k, top_p to what is left, then min_p, to candidates in falling order; draw one id for each row."""
    device, width = probabilities_RC.device, probabilities_RC.shape[1]
    top_k_R = torch.tensor([min(draw.params.top_k, width) or width for draw in draws], device=device)
    kept_RC = probabilities_RC * (torch.arange(width, device=device) < top_k_R[:, None])
    # Without top_k the total is 1, also where only the first candidates are here; with it, what top_k has kept.
    has_k_R = torch.tensor([draw.params.top_k > 0 for draw in draws], device=device)
    total_R = torch.where(has_k_R, kept_RC.sum(-1), 1.0)
    before_RC = kept_RC.cumsum(-1) - kept_RC
    top_p_R, min_p_R = torch.tensor([[draw.params.top_p, draw.params.min_p] for draw in draws], device=device).T
    kept_RC = kept_RC * (before_RC < (top_p_R * total_R)[:, None])
    kept_RC = kept_RC * (kept_RC >= min_p_R[:, None] * kept_RC[:, :1])
    cumulative_RC = kept_RC.double().cumsum(-1)
    columns_R1 = _column(cumulative_RC, _uniforms(draws, kept_RC) * cumulative_RC[:, -1:])
    return ids_RC.gather(-1, columns_R1)[:, 0]


def _uniforms(draws: Sequence[Draw], like: Tensor) -> Tensor:
    return torch.tensor([[uniform(draw.seed, draw.place)] for draw in draws], dtype=torch.float64, device=like.device)


def _column(cumulative_RC: Tensor, target_R1: Tensor) -> Tensor:
    """The column at which each row's cumulative weight passes its target; never one of zero weight. int64 [R, 1]."""
    columns_R1 = torch.searchsorted(cumulative_RC, target_R1.contiguous(), right=True)
    last_R1 = torch.searchsorted(cumulative_RC, cumulative_RC[:, -1:].contiguous(), right=False)
    return torch.minimum(columns_R1, last_R1)
