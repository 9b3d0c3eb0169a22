"""One global order of pretraining records: a pure function of sources, weights and seed.

Knows nothing about ranks, accumulation, batch sizes, context lengths or restarts: none of them can change it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.mixture import Interleave
from ernie45.data.shuffle import permutation


class Entry(NamedTuple):
    """A record by source and number, and which pass over that source it is read in."""

    source: str
    number: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of the order with shares of its own: a curriculum is several. blocks: how long; None: without end.

    weights: by source; empty: by how many records each has. Sources of weight 0 are left out there.
    """

    weights: Mapping[str, float]
    blocks: int | None = None


class GlobalOrder:
    """Position -> record. Sources take turns in blocks of `block` records, by the shares of the part; each source goes through
    its records in shuffled blocks, pass after pass, and goes on where it was when a new part begins.

    A block keeps its records together in their own order, so a context of up to `block` records that divides it reads long
    documents on from record to record. At every border of blocks each source has its share to within less than one block.
    """

    def __init__(self, counts: Mapping[str, int], parts: Sequence[Part], seed: int, block: int = 1) -> None:
        """counts: records of each source. DataError for weights of unknown sources, or if there is no record.

        key: of all that decides on the order.
        """
        self._counts, self._seed, self.block = dict(counts), seed, block
        facts = (sorted(counts.items()), [(sorted(part.weights.items()), part.blocks) for part in parts], seed, block)
        self.key = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
        self._shuffled = lru_cache(maxsize=2 * len(counts) + 2)(self._shuffle)
        if not counts or not parts:
            raise DataError("data files have no record for this order; add files, or change what the run reads")
        self._parts: list[tuple[int, Interleave, dict[str, int]]] = []  # first block, shares, blocks of each source before
        start, taken = 0, dict.fromkeys(counts, 0)
        for number, part in enumerate(parts):
            self._parts.append((start, Interleave(self._shares(part)), dict(taken)))
            if part.blocks is None:
                if number < len(parts) - 1:
                    raise DataError("curriculum: only the last part may be without end; give the others a length")
                break
            mixture = self._parts[-1][1]
            for name, more in zip(mixture.names, mixture.count_before(part.blocks).tolist(), strict=True):
                taken[name] += more
            start += part.blocks

    def __getitem__(self, position: int) -> Entry:
        """The record at a position, from 0."""
        block, offset = divmod(position, self.block)
        first, mixture, taken = next(part for part in reversed(self._parts) if part[0] <= block)
        source = mixture.source_at(block - first)
        name = mixture.names[source]
        before = taken[name] + int(mixture.count_before(block - first)[source])
        epoch, place = divmod(before * self.block + offset, self._counts[name])
        return Entry(name, int(self._shuffled(name, epoch)[place]), epoch)

    def stretch(self, start: int, end: int) -> list[Entry]:
        """The records at positions [start, end)."""
        return [self[position] for position in range(start, end)]

    def digest(self, start: int, end: int) -> str:
        """Of the records at positions [start, end): what a ledger keeps to prove which they were."""
        text = "\n".join(f"{entry.source}/{entry.epoch}/{entry.number}" for entry in self.stretch(start, end))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _shares(self, part: Part) -> dict[str, float]:
        for name in part.weights:
            if name not in self._counts:
                raise DataError(f"weights ({name}) must name a source with records; there are {', '.join(self._counts)}")
        shares = {name: weight for name, weight in part.weights.items() if weight > 0} or dict(self._counts)
        return {name: float(weight) for name, weight in shares.items()}

    def _shuffle(self, name: str, epoch: int) -> np.ndarray:
        """Record numbers of one pass: whole blocks in shuffled order, each with its records one after the other."""
        count = self._counts[name]
        starts = permutation(-(-count // self.block), self._seed, "records", name, epoch) * self.block
        numbers = (starts[:, None] + np.arange(self.block)).flatten()
        return numbers[numbers < count]


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Whole steps of texts alone, then whole steps with pictures, again and again."""

    text_steps: int
    picture_steps: int

    def shows_pictures(self, step: int) -> bool:
        """Which kind a step is of."""
        return step % (self.text_steps + self.picture_steps) >= self.text_steps

    def steps_before(self, step: int) -> tuple[int, int]:
        """How many earlier steps were of texts, and how many with pictures."""
        rounds, rest = divmod(step, self.text_steps + self.picture_steps)
        texts = rounds * self.text_steps + min(rest, self.text_steps)
        return texts, step - texts
