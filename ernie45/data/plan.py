"""Which records go into one pack: within a budget of tokens and one of patches, as full as possible.

Knows nothing about records but their sizes; needs no torch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ernie45.config.errors import DataError


class Budget(NamedTuple):
    """What one pack holds. patches 0: any number."""

    tokens: int
    patches: int = 0


@dataclass
class _Open:
    """A pack that is not closed. rounds: windows it has been open for."""

    free_tokens: int
    free_patches: float
    records: list[int] = field(default_factory=list)
    rounds: int = 0


def plan_packs(order: Sequence[int], sizes: np.ndarray, budget: Budget, window: int) -> list[list[int]]:
    """Packs of record numbers, each record of `order` in one of them, as often as it occurs.

    sizes: int [N, 2], tokens and patches by record. The records are taken in windows; within one the largest go first, each
    into the fullest pack that still holds it (best fit decreasing). A pack stays open for one window more, so that its rest
    can be filled. DataError for a record larger than the budget.
    """
    packs: list[list[int]] = []
    still: list[_Open] = []
    for start in range(0, len(order), window):
        ordered = np.asarray(order[start : start + window])
        still, closed = _fill(ordered, sizes, budget, still)
        packs += [pack.records for pack in closed]
    return packs + [pack.records for pack in still]


def _fill(window: np.ndarray, sizes: np.ndarray, budget: Budget, still: list[_Open]) -> tuple[list[_Open], list[_Open]]:
    """One window into open packs and new ones: (those that stay open, those that are closed)."""
    packs = list(still)
    by_room = sorted((pack.free_tokens, number) for number, pack in enumerate(packs))
    share = sizes[window] / [budget.tokens, budget.patches or np.inf]
    for record in window[np.argsort(-share.max(axis=1), kind="stable")].tolist():
        tokens, patches = (int(size) for size in sizes[record])
        if tokens > budget.tokens or (budget.patches and patches > budget.patches):
            raise DataError(
                f"record {record} ({tokens} tokens, {patches} patches) must fit into a pack of {budget.tokens} tokens and "
                f"{budget.patches or 'any number of'} patches; raise data.token_budget or data.patch_budget"
            )
        place = bisect_left(by_room, (tokens, -1))
        while place < len(by_room) and packs[by_room[place][1]].free_patches < patches:
            place += 1
        if place < len(by_room):
            number = by_room.pop(place)[1]
        else:
            number = len(packs)
            packs.append(_Open(budget.tokens, budget.patches or np.inf))
        pack = packs[number]
        pack.free_tokens -= tokens
        pack.free_patches -= patches
        pack.records.append(record)
        insort(by_room, (pack.free_tokens, number))
    for pack in packs:
        pack.rounds += 1
    return [pack for pack in packs if pack.rounds < 2], [pack for pack in packs if pack.rounds >= 2]


def fullness(packs: Sequence[Sequence[int]], sizes: np.ndarray, budget: Budget) -> float:
    """Tokens in the packs as a share of what they have room for."""
    used = sum(int(sizes[list(pack), 0].sum()) for pack in packs)
    return used / (len(packs) * budget.tokens) if packs else 0.0
