"""Low-rank adapters (LoRA) beside the model's own weights: y = W x + B (A x), for the rows of a step that ask for them.

Knows nothing about files, names of requests or optimisers. The weights of the model are never changed, so rows of several
adapters and of none share one step. Training and serving are this one path. Source: Hu et al., LoRA (2021); several at once
as in S-LoRA and Punica (2023).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie45.ops.low_rank import Dropout, ExpertAdapter, LowRank, add_product

__all__ = ["AdapterRows", "Dropout", "ExpertPair", "LoraAdapter", "LowRank", "add_low_rank", "changes", "expert_adapters"]


class ExpertPair(NamedTuple):
    """What is added to a pool's stacked experts; None where nothing is."""

    gate_up: LowRank | None
    down: LowRank | None


class LoraAdapter:
    """One adapter for one model: the projections and expert pools it changes.

    `content_hash` stands for its numbers in page keys. dropout: of a step in training, None otherwise.
    """

    def __init__(
        self,
        pairs: Mapping[nn.Module, LowRank],
        content_hash: str,
        experts: Mapping[nn.Module, ExpertPair] | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        self.pairs, self.experts = dict(pairs), dict(experts or {})
        self.content_hash, self.dropout = content_hash, dropout
        self._places = {module: 2 * number for number, module in enumerate([*self.pairs, *self.experts])}

    @property
    def num_parameters(self) -> int:
        stacks = [pair for both in self.experts.values() for pair in both if pair is not None]
        return sum(pair.a_LD.numel() + pair.b_NL.numel() for pair in [*self.pairs.values(), *stacks])

    def place(self, module: nn.Module) -> int:
        """A number of its own for each changed module."""
        return self._places[module]


class AdapterRows(NamedTuple):
    """The rows of a step that one adapter serves; index_R int64 [R], None when it serves all of them."""

    adapter: LoraAdapter
    index_R: Tensor | None


def changes(module: nn.Module, adapters: Sequence[AdapterRows]) -> bool:
    """Whether any adapter of this step adds to the projection or to the pool."""
    return any(module in rows.adapter.pairs or module in rows.adapter.experts for rows in adapters)


def add_low_rank(y_TN: Tensor, x_TD: Tensor, projection: nn.Module, adapters: Sequence[AdapterRows]) -> Tensor:
    """y + B (A x) on the rows of each adapter that changes `projection`, whose output for x is y. y may be written to."""
    for adapter, index_R in adapters:
        pair = adapter.pairs.get(projection)
        if pair is not None:
            x = x_TD if adapter.dropout is None else adapter.dropout(x_TD, adapter.place(projection))
            y_TN = add_product(y_TN, x, pair, index_R)
    return y_TN


def expert_adapters(
    pool: nn.Module, pool_index_R: Tensor | None, num_rows: int, adapters: Sequence[AdapterRows]
) -> list[ExpertAdapter]:
    """What the adapters of a step add to a pool, in terms of the pool's own rows.

    pool_index_R: places of the pool's rows among the step's, None if it serves all of them; num_rows: of the step.
    """
    found = []
    for adapter, index_R in adapters:
        pair = adapter.experts.get(pool)
        if pair is None:
            continue
        mine_R = None
        if index_R is not None:
            mine_T = torch.zeros(num_rows, dtype=torch.bool, device=index_R.device).index_fill_(0, index_R, True)
            mine_R = mine_T if pool_index_R is None else mine_T.index_select(0, pool_index_R)
        place = adapter.place(pool)
        found.append(ExpertAdapter(pair.gate_up, pair.down, mine_R, adapter.dropout, (place, place + 1)))
    return found
