"""Packing: sequences with labels joined into one step by a token budget.

Knows nothing about where sequences come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ernie45.config.errors import DataError
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.model.batch import PackedBatch, pack

__all__ = ["IGNORED", "Labelled", "LanguageBatch", "collate", "fill", "token_balanced_weights"]


@dataclass(frozen=True, kw_only=True)
class LanguageBatch:
    """Packed sequences with labels: one shard of a step.

    rows_R: rows of the packed tokens that have a label; labels_R: that label. weights_R: fp32, what a row's loss counts in the
    loss of the whole step; over all shards the weighted losses add up to it. share: this shard's, in a mean over shards.
    sources: names of all that sequences of the run come from; source_R: int64, which of them a row is of. shows_R: bool,
    whether the row's sequence has pictures. These are for metrics alone. noise: seed of what a forward draws by chance
    (dropout); None: nothing is drawn.
    """

    packed: PackedBatch
    rows_R: Tensor
    labels_R: Tensor
    weights_R: Tensor
    share: float
    sources: tuple[str, ...] = ()
    source_R: Tensor | None = None
    shows_R: Tensor | None = None
    noise: int | None = None


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


def token_balanced_weights(items: Sequence[Labelled], num_tokens: int) -> list[float]:
    """1 / num_tokens for every sequence; num_tokens: all tokens a step has room for, pictures and prompts included.

    In sample i a label so counts 1 / (labelled + masked tokens), not 1 / labelled: a long picture with a short answer does not
    outweigh a text. A constant, so a step's gradient is a sum over its tokens. Source: ERNIE 4.5's token-balanced loss.
    """
    return [1 / num_tokens] * len(items)


def collate(items: Sequence[Labelled], weights: Sequence[float], share: float, sources: tuple[str, ...] = ()) -> LanguageBatch:
    """Pack sequences, pictures of one shape and sequences of one length side by side, where attention takes them together.

    weights: one a sequence, for each of its labels, in the loss of the whole step; share: as in `LanguageBatch`.
    sources: names of all that the sequences of the run may come from, so that every process has metrics of the same names.
    """
    places = sorted(range(len(items)), key=lambda i: ([medium.grid for medium in items[i].inputs.media], len(items[i].inputs)))
    ordered = [items[place] for place in places]
    labels = np.concatenate([item.labels_S for item in ordered])
    rows = np.flatnonzero(labels != IGNORED)
    by_token = np.repeat(np.array([weights[place] for place in places], dtype=np.float32), [len(i.inputs) for i in ordered])
    numbers = np.array([sources.index(item.source) if sources else 0 for item in ordered])
    shows = np.array([bool(item.inputs.media) for item in ordered])
    lengths = [item.num_labels for item in ordered]
    return LanguageBatch(
        packed=pack([item.inputs for item in ordered]),
        rows_R=torch.from_numpy(rows),
        labels_R=torch.from_numpy(labels[rows]),
        weights_R=torch.from_numpy(by_token[rows]),
        share=share,
        sources=sources,
        source_R=torch.from_numpy(np.repeat(numbers, lengths)),
        shows_R=torch.from_numpy(np.repeat(shows, lengths)),
    )
