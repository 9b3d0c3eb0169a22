"""Some of the records of a data set, as a data set: what is trained on and what is held out.

Knows nothing about files or token ids.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from ernie45.data.dataset import Dataset, Found
from ernie45.data.records import Kind


class Subset(Dataset):
    """The records with these numbers, in order."""

    def __init__(self, whole: Dataset, indices: np.ndarray) -> None:
        self.paths, self._whole, self._indices = whole.paths, whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Kind]:
        return (self[index] for index in range(len(self)))

    def find(self, index: int) -> Found:
        """As in `Dataset`."""
        return self._whole.find(self._at(index))

    def origin(self, index: int) -> str:
        """As in `Dataset`."""
        return self._whole.origin(self._at(index))

    def source_of(self, index: int) -> str:
        """As in `Dataset`."""
        return self._whole.source_of(self._at(index))

    @property
    def sources(self) -> dict[str, np.ndarray]:
        """As in `Dataset`; a source without a record here is left out."""
        found = {name: np.flatnonzero(np.isin(self._indices, own)) for name, own in self._whole.sources.items()}
        return {name: own for name, own in found.items() if len(own)}

    @property
    def fingerprint(self) -> list[list[object]]:
        """As in `Dataset`, and of which records they are."""
        return [*self._whole.fingerprint, [hashlib.sha256(self._indices.tobytes()).hexdigest()]]

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self._indices[index])


def split(whole: Dataset, share: float, seed: int) -> tuple[Subset, Subset]:
    """(kept, held out): about `share` of the records, by chance, at least one where there are two. Pure in seed and length."""
    order = np.random.default_rng([seed, len(whole)]).permutation(len(whole))
    count = min(max(round(share * len(whole)), 1), len(whole) - 1)
    return Subset(whole, np.sort(order[count:])), Subset(whole, np.sort(order[:count]))
