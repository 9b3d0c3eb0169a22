"""The order in which records are taken: epochs, each shuffled by the seed, or a mixture of sources without end.

Knows nothing about what records are; a pure function of seed, numbers and weights, the same on every machine.
"""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.mixture import Interleave


def permutation(num: int, *key: object) -> np.ndarray:
    """int64 [num]: a shuffle that depends on the key alone. From raw 64-bit words, whose stream numpy keeps for ever."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    words = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")).random_raw(num)
    return words.argsort(kind="stable")


class RecordOrder:
    """Chunks of record numbers, chunk after chunk.

    Without weights a chunk is one epoch: every record once. With weights sources are interleaved by their shares, and each goes
    through epochs of its own; a chunk is then as long as all records together.
    """

    def __init__(self, sources: Mapping[str, np.ndarray], weights: Mapping[str, float], seed: int) -> None:
        """sources: record numbers by name. DataError if weights and sources do not name the same."""
        self._seed, self._sources = seed, dict(sources)
        self._mixture = Interleave(weights) if weights else None
        for name in weights:
            if name not in sources:
                near = get_close_matches(name, list(sources), n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sources)}"
                raise DataError(f"data.weights ({name}) must be the name of a data file up to its first dot; {hint}")
        missing = sorted(set(sources) - set(weights)) if weights else []
        if missing:
            raise DataError(f"data.weights must have a weight for {missing[0]}, too, or none at all; add {missing[0]}=1")
        self.num_records = sum(map(len, self._sources.values()))

    def chunk(self, number: int) -> np.ndarray:
        """Record numbers of a chunk, in order."""
        if self._mixture is None:
            everything = np.concatenate(list(self._sources.values()))
            return everything[permutation(len(everything), self._seed, "epoch", number)]
        start, end = number * self.num_records, (number + 1) * self.num_records
        places = self._mixture.stretch(start, end)
        before = self._mixture.count_before(start)
        result = np.empty(end - start, dtype=np.int64)
        for source, name in enumerate(self._mixture.names):
            own = np.flatnonzero(places == source)
            result[own] = self._occurrences(name, int(before[source]), len(own))
        return result

    def _occurrences(self, name: str, first: int, count: int) -> np.ndarray:
        """The records of a source from its `first`-th occurrence on."""
        records = self._sources[name]
        taken = np.arange(first, first + count)
        result = np.empty(count, dtype=np.int64)
        for epoch in range(first // len(records), (first + count - 1) // len(records) + 1 if count else 0):
            here = taken // len(records) == epoch
            shuffled = records[permutation(len(records), self._seed, name, epoch)]
            result[here] = shuffled[taken[here] % len(records)]
        return result
