"""Packing: sequences with labels joined into one step by a token budget.

Knows nothing about where sequences come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.errors import DataError
from ernie45.config.inputs import ModelInput
from ernie45.model.batch import PackedBatch, pack

IGNORED = -100


class Labelled(NamedTuple):
    """A sequence and the token to predict at each of its places: labels_S int64 [S], already shifted, IGNORED for none."""

    inputs: ModelInput
    labels_S: np.ndarray


@dataclass(frozen=True, kw_only=True)
class LanguageBatch:
    """Packed sequences with labels.

    rows_R: rows of the packed tokens that have a label; labels_R: that label. token_budget: tokens the batch had room for.
    """

    packed: PackedBatch
    rows_R: Tensor
    labels_R: Tensor
    token_budget: int


def fill(token_budget: int, draw: Callable[[int], Labelled]) -> list[Labelled]:
    """Draw sequences 0, 1, ... as long as they fit into the budget; the first that does not fit ends the batch."""
    chosen: list[Labelled] = []
    total = 0
    while True:
        item = draw(len(chosen))
        total += len(item.inputs)
        if total > token_budget:
            break
        chosen.append(item)
    if not chosen:
        raise DataError(f"token_budget ({token_budget}) must hold one sequence of {total} tokens; raise it")
    return chosen


def collate(items: Sequence[Labelled], token_budget: int) -> LanguageBatch:
    """Pack sequences, pictures of one shape and sequences of one length side by side, where attention takes them together."""
    ordered = sorted(items, key=lambda item: ([medium.grid for medium in item.inputs.media], len(item.inputs)))
    labels = np.concatenate([item.labels_S for item in ordered])
    rows = np.flatnonzero(labels != IGNORED)
    return LanguageBatch(
        packed=pack([item.inputs for item in ordered]),
        rows_R=torch.from_numpy(rows),
        labels_R=torch.from_numpy(labels[rows]),
        token_budget=token_budget,
    )
