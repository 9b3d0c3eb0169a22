"""Penalties, biases and constraints on logits, for all rows of a step at once.

Knows nothing about sampling, requests or text. Rows that ask for nothing are not touched and cost nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.sampling import SamplingParams
from ernie45.engine.history import Constraint, Counts

# A repetition penalty at which a seen token is surely drawn, or surely not; beyond, logits would not stay finite.
_EXTREME = 1e20


class Row(NamedTuple):
    """One row of logits that is to be changed."""

    index: int
    params: SamplingParams
    counts: Counts | None
    constraint: Constraint


def apply_processors(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    """Change the rows in place: fp32 logits [R, V]. Order and meaning as in `SamplingParams`."""
    free = [row for row in rows if row.constraint.forced is None]
    _penalise(logits_RV, [row for row in free if row.counts is not None and len(row.counts.ids)])
    _bias(logits_RV, [row for row in free if row.params.logit_bias])
    _ban(logits_RV, [row for row in free if row.constraint.banned and row.constraint.allowed is None])
    _allow(logits_RV, [row for row in free if row.constraint.allowed is not None])
    _force(logits_RV, [row for row in rows if row.constraint.forced is not None])


def _penalise(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    if not rows:
        return
    counts = [row.counts for row in rows if row.counts is not None]
    sizes = [len(count.ids) for count in counts]
    device = logits_RV.device
    entries = np.stack([np.repeat([row.index for row in rows], sizes), *map(np.concatenate, zip(*counts, strict=True))])
    index_N, ids_N, counts_N = torch.from_numpy(entries).to(device, non_blocking=True)
    values = np.array(
        [(row.params.repetition_penalty, row.params.frequency_penalty, row.params.presence_penalty) for row in rows]
    )
    values[:, 0] = values[:, 0].clip(1 / _EXTREME, _EXTREME)
    weights = np.repeat(values.astype(np.float32).T, sizes, axis=1)
    repetition_N, frequency_N, presence_N = torch.from_numpy(weights).to(device, non_blocking=True)
    logits_N = logits_RV[index_N, ids_N]
    logits_N = torch.where(logits_N > 0, logits_N / repetition_N, logits_N * repetition_N)
    logits_N -= counts_N * frequency_N + (counts_N > 0) * presence_N
    logits_RV[index_N, ids_N] = logits_N


def _bias(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    if not rows:
        return
    entries = [(row.index, token_id) for row in rows for token_id, _ in row.params.logit_bias]
    values = [value for row in rows for _, value in row.params.logit_bias]
    index_N, ids_N = torch.tensor(entries, device=logits_RV.device).T
    values_N = torch.tensor(values, dtype=torch.float32, device=logits_RV.device)
    logits_RV.index_put_((index_N, ids_N), values_N, accumulate=True)


def _ban(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    if not rows:
        return
    entries = [(row.index, token_id) for row in rows for token_id in row.constraint.banned]
    index_N, ids_N = torch.tensor(entries, device=logits_RV.device).T
    logits_RV[index_N, ids_N] = -torch.inf


def _allow(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    for row in rows:
        assert row.constraint.allowed is not None
        forbidden_V = torch.from_numpy(~row.constraint.allowed).to(logits_RV.device, non_blocking=True)
        logits_RV[row.index].masked_fill_(forbidden_V, -torch.inf)


def _force(logits_RV: Tensor, rows: Sequence[Row]) -> None:
    for row in rows:
        logits_RV[row.index].fill_(-torch.inf)
        logits_RV[row.index, row.constraint.forced] = 0.0
