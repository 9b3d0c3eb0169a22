"""Logits to tokens, for all rows of a step at once.

Knows nothing about requests' text, pages or why a row is sampled.

A row's token depends on its logits, its parameters, its seed and its place in the sequence, and on nothing beside it: the
only randomness is one number in [0, 1) computed on the host from (seed, place), at which the row's cumulative distribution
is read off. So a request samples the same tokens alone, in any batch and after preemption.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ernie45.config.sampling import SamplingParams

# Rows with a filter are first cut to this many candidates; a row whose top_p needs more is sorted whole. The number may
# not depend on the batch, or ties between equal logits could fall differently.
NUM_CANDIDATES = 1024


class Draw(NamedTuple):
    """How to sample one row. `place`: the index in its sequence of the token to be drawn."""

    params: SamplingParams
    seed: int
    place: int


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) with 53 random bits, a pure function of its arguments."""
    digest = blake2b(seed.to_bytes(8, "little") + place.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """One token id for each row, int64 [R], on the device of the logits."""
    assert len(logits_RV) == len(draws), (logits_RV.shape, len(draws))
    greedy = [row for row, draw in enumerate(draws) if draw.params.temperature == 0]
    if len(greedy) == len(draws):
        return logits_RV.argmax(-1)
    plain = [row for row, draw in enumerate(draws) if draw.params.temperature > 0 and not _filtered(draw.params)]
    filtered = [row for row, draw in enumerate(draws) if draw.params.temperature > 0 and _filtered(draw.params)]
    tokens_R = torch.empty(len(draws), dtype=torch.int64, device=logits_RV.device)
    if greedy:
        tokens_R[greedy] = logits_RV[greedy].argmax(-1)
    if plain:
        rows = [draws[row] for row in plain]
        tokens_R[plain] = _read_off(_scaled(logits_RV[plain], rows).softmax(-1), rows)
    if filtered:
        tokens_R[filtered] = _sample_filtered(logits_RV[filtered], [draws[row] for row in filtered])
    return tokens_R


def filtered_probabilities(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The distribution each row is drawn from, float64 [R, V], for temperatures above 0: the slow twin of `sample`."""
    probabilities_RV = _scaled(logits_RV, draws).double().softmax(-1)
    for row_V, draw in zip(probabilities_RV, draws, strict=True):
        order_V = row_V.argsort(descending=True, stable=True)
        kept = order_V[: draw.params.top_k or None]
        mass = row_V[kept] / row_V[kept].sum()
        kept = kept[mass.cumsum(0) - mass < draw.params.top_p]
        keep_V = torch.zeros_like(row_V).index_fill_(0, kept, 1.0)
        row_V *= keep_V
        row_V /= row_V.sum()
    return probabilities_RV


def _filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1


def _scaled(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    # A temperature so small that logits overflow would make inf - inf; 1e-6 is already greedy for fp32 logits.
    temperatures = [max(draw.params.temperature, 1e-6) for draw in draws]
    return logits_RV.float() / torch.tensor(temperatures, device=logits_RV.device)[:, None]


def _sample_filtered(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Rows with top_k or top_p: candidates in falling order, cut, then read off."""
    scaled_RV = _scaled(logits_RV, draws)
    width = min(NUM_CANDIDATES, scaled_RV.shape[1])
    best_RC, ids_RC = scaled_RV.topk(width, dim=-1)
    probabilities_RC = (best_RC - scaled_RV.logsumexp(-1, keepdim=True)).exp()
    tokens_R = _cut_and_read_off(probabilities_RC, ids_RC, draws)
    if width < scaled_RV.shape[1]:
        mass_R = probabilities_RC.sum(-1).tolist()
        wide = [row for row, draw in enumerate(draws) if not _suffices(draw.params, width, mass_R[row])]
        if wide:
            best_RV, ids_RV = scaled_RV[wide].sort(dim=-1, descending=True, stable=True)
            tokens_R[wide] = _cut_and_read_off(best_RV.softmax(-1), ids_RV, [draws[row] for row in wide])
    return tokens_R


def _suffices(params: SamplingParams, width: int, mass: float) -> bool:
    """Whether the `width` likeliest tokens, with this probability together, contain all that the filters keep."""
    return params.top_k <= width if params.top_k else mass >= params.top_p


def _cut_and_read_off(probabilities_RC: Tensor, ids_RC: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Apply top_k, then top_p to what is left, to candidates in falling order; draw one id for each row."""
    device, width = probabilities_RC.device, probabilities_RC.shape[1]
    top_k_R = torch.tensor([min(draw.params.top_k, width) or width for draw in draws], device=device)
    kept_RC = probabilities_RC * (torch.arange(width, device=device) < top_k_R[:, None])
    # Without top_k the total is 1, also where only the first candidates are here; with it, what top_k has kept.
    has_k_R = torch.tensor([draw.params.top_k > 0 for draw in draws], device=device)
    total_R = torch.where(has_k_R, kept_RC.sum(-1), 1.0)
    before_RC = kept_RC.cumsum(-1) - kept_RC
    top_p_R = torch.tensor([draw.params.top_p for draw in draws], device=device)
    kept_RC = kept_RC * (before_RC < (top_p_R * total_R)[:, None])
    return ids_RC.gather(-1, _read_off(kept_RC, draws)[:, None])[:, 0]


def _read_off(weights_RC: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The column at which each row's cumulative weight passes u times its total; never one of zero weight."""
    cumulative_RC = weights_RC.double().cumsum(-1)
    u_R1 = torch.tensor([[uniform(draw.seed, draw.place)] for draw in draws], dtype=torch.float64, device=weights_RC.device)
    columns_R1 = torch.searchsorted(cumulative_RC, u_R1 * cumulative_RC[:, -1:], right=True)
    last_R1 = torch.searchsorted(cumulative_RC, cumulative_RC[:, -1:].contiguous(), right=False)
    return torch.minimum(columns_R1, last_R1)[:, 0]
