"""Low-rank adapters (LoRA) beside the model's own weights: y = W x + B (A x), for the rows of a step that ask for them.

Knows nothing about files, names of requests or training. The weights of the model are never changed, so rows of several
adapters and of none share one step. Source: Hu et al., LoRA (2021); several at once as in S-LoRA and Punica (2023).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn


class LowRank(NamedTuple):
    """What an adapter adds to one projection, B A: a_LD [rank, D], b_NL [N, rank] with the scale inside.

    A fused projection (q | k | v, gate | up) has the ranks of its parts one after the other; B is then zero outside each
    part's own rows and ranks.
    """

    a_LD: Tensor
    b_NL: Tensor


class LoraAdapter:
    """One adapter for one model: the projections it changes. `content_hash` stands for its numbers in page keys."""

    def __init__(self, pairs: Mapping[nn.Module, LowRank], content_hash: str) -> None:
        self.pairs = dict(pairs)
        self.content_hash = content_hash

    @property
    def num_parameters(self) -> int:
        return sum(pair.a_LD.numel() + pair.b_NL.numel() for pair in self.pairs.values())


class AdapterRows(NamedTuple):
    """The rows of a step that one adapter serves; index_R int64 [R], None when it serves all of them."""

    adapter: LoraAdapter
    index_R: Tensor | None


def changes(projection: nn.Module, adapters: Sequence[AdapterRows]) -> bool:
    """Whether any adapter of this step adds to the projection."""
    return any(projection in rows.adapter.pairs for rows in adapters)


def add_low_rank(y_TN: Tensor, x_TD: Tensor, projection: nn.Module, adapters: Sequence[AdapterRows]) -> Tensor:
    """y + B (A x) on the rows of each adapter that changes `projection`, whose output for x is y. y is written to."""
    for adapter, index_R in adapters:
        pair = adapter.pairs.get(projection)
        if pair is None:
            continue
        if index_R is None:
            y_TN.addmm_(x_TD @ pair.a_LD.T, pair.b_NL.T)
        else:
            y_TN.index_add_(0, index_R, x_TD.index_select(0, index_R) @ pair.a_LD.T @ pair.b_NL.T)
    return y_TN
