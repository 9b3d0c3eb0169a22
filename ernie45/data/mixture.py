"""Shares of a mixture as a sequence of sources that keeps them at every length, without chance.

Knows nothing about records.
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from math import gcd

import numpy as np

from ernie45.config.errors import DataError

MAX_PERIOD = 100_000
"""Longest pattern; finer shares are rounded to this many parts."""


class Interleave:
    """An endless sequence of sources that repeats with a period.

    Of the first p places, source s has its share w_s * p to within less than one, for every p: the smallest deviation that is
    possible at once for all. Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980).
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """weights: shares on any positive scale. DataError if there is none."""
        if not weights:
            raise DataError("mixture () must have at least one source; name one")
        self.names = tuple(weights)
        self.counts = _whole_shares(list(weights.values()))
        self.period = int(self.counts.sum())

    def source_at(self, place: int) -> int:
        """The number of the source at a place, from 0."""
        return int(self._pattern[place % self.period])

    def count_before(self, place: int) -> np.ndarray:
        """int64 [sources]: how often each source occurs before a place."""
        rounds, rest = divmod(place, self.period)
        return rounds * self.counts + self._prefix[rest]

    def stretch(self, start: int, end: int) -> np.ndarray:
        """The sources at the places [start, end)."""
        return self._pattern[np.arange(start, end) % self.period]

    @cached_property
    def _pattern(self) -> np.ndarray:
        """Among the sources that are behind by at least 1 / (2 n - 2), the one that would be late first."""
        num = len(self.counts)
        if num == 1:
            return np.zeros(self.period, dtype=np.int16)
        pattern = np.empty(self.period, dtype=np.int16)
        # Everything times period * (2 n - 2), so that all of it is whole numbers.
        scale, shares = 2 * num - 2, self.counts.astype(np.int64)
        given = np.zeros(num, dtype=np.int64)
        for place in range(1, self.period + 1):
            behind = scale * (shares * place - self.period * given)
            due = behind >= self.period
            # (1 - 1/(2n-2) - behind) / w, compared as numbers of places until the source would be late
            late_in = np.where(due, ((scale - 1) * self.period - behind) / shares, np.inf)
            chosen = int(late_in.argmin())
            pattern[place - 1] = chosen
            given[chosen] += 1
        return pattern

    @cached_property
    def _prefix(self) -> np.ndarray:
        """int64 [period + 1, sources]"""
        prefix = np.zeros((self.period + 1, len(self.counts)), dtype=np.int64)
        for source in range(len(self.counts)):
            np.cumsum(self._pattern == source, out=prefix[1:, source])
        return prefix


def _whole_shares(weights: list[float]) -> np.ndarray:
    """Whole numbers in the ratio of the weights as written; rounded to MAX_PERIOD parts if that takes more, none to 0."""
    exact = [Fraction(repr(weight)) for weight in weights]
    if min(exact) <= 0:
        raise DataError(f"mixture weights ({weights}) must be above 0; leave a source out instead")
    common = 1
    for share in exact:
        common = common * share.denominator // gcd(common, share.denominator)
    whole = [int(share * common) for share in exact]
    divisor = gcd(*whole)
    whole = [share // divisor for share in whole]
    if sum(whole) <= MAX_PERIOD:
        return np.array(whole, dtype=np.int64)
    total = sum(exact)
    scaled = [share / total * MAX_PERIOD for share in exact]
    rounded = [max(1, int(share)) for share in scaled]
    largest = sorted(range(len(scaled)), key=lambda place: rounded[place] - scaled[place])
    for place in largest[: max(0, MAX_PERIOD - sum(rounded))]:
        rounded[place] += 1
    return np.array(rounded, dtype=np.int64)
