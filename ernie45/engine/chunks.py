"""Chunks of a step, where they may end, and what a step may still take on.

Knows nothing about pages, queues or which request goes first.
"""

from bisect import bisect_right
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from ernie45.engine.request import MediaUnit, Request

_LEAST_TOKENS = 16


class Chunk(NamedTuple):
    """Tokens start to end of one request, computed in one step. `samples`: they reach the last token, so one is drawn.

    The last of them may be a token that the step before draws and that the host has not seen (`num_pending_tokens`).
    """

    request: Request
    start: int
    end: int
    samples: bool


class StepBudget:
    """What prompts may still take of one step: tokens, and tokens of pictures to be encoded.

    tokens: what prompts should take, less what they have. hard_tokens: what the step has room for, which one picture may use.
    is_encoded: whether the features of a unit, by its key, are in memory, so that they cost nothing.
    context_of_double: tokens of context behind which a token costs twice as much as the first, as attention then costs what all
    the rest does: later chunks of a long prompt are shorter, so that all take the same time. None: tokens count alike.
    """

    __slots__ = ("_context_of_double", "_encoder_tokens", "_encoding", "_hard_tokens", "_is_encoded", "_is_untouched", "tokens")

    def __init__(
        self,
        tokens: int,
        hard_tokens: int,
        encoder_tokens: int,
        is_encoded: Callable[[tuple], bool],
        context_of_double: int | None = None,
    ) -> None:
        self.tokens = tokens
        self._context_of_double = context_of_double
        self._hard_tokens = hard_tokens
        self._encoder_tokens = encoder_tokens
        self._is_encoded = is_encoded
        self._encoding: set[tuple] = set()
        self._is_untouched = True

    def first_end(self, request: Request, start: int, threshold: int) -> int:
        """Where a request's chunk ends at first: a prompt with more than `threshold` tokens left to compute leaves half to
        others, and gets back what they do not take."""
        limit = self.tokens
        if request.num_tokens - start > threshold:
            limit = (limit + 1) // 2
        return self.chunk_end(request, start, limit)

    def chunk_end(self, request: Request, start: int, limit: int) -> int:
        """Where a chunk that begins at `start` ends: at most `limit` tokens on, and never inside an image or two-frame unit.

        A chunk that would begin with a unit longer than that takes it whole if the step has room for it, or if it is the
        step's first; else the result is `start`.
        """
        end = min(request.num_tokens, start + (limit if self._context_of_double is None else self._affordable(start, limit)))
        units = request.units
        if not units or start >= units[-1].end:
            return end
        encoder_tokens = self._encoder_tokens
        for index in range(max(bisect_right(request.unit_starts, start) - 1, 0), len(units)):
            unit = units[index]
            if unit.start >= end:
                break
            if unit.end <= start:
                continue
            encoder_tokens -= self._cost(unit)
            if unit.end > end or encoder_tokens < 0:
                if unit.start > start:
                    return unit.start
                fits = encoder_tokens >= 0 and unit.end - start <= self._hard_tokens
                return unit.end if fits or self._is_untouched else start
        return end

    def take(self, request: Request, start: int, end: int) -> None:
        """Book a chunk."""
        self.tokens -= end - start if self._context_of_double is None else ceil((end - start) * self._price(start))
        self._hard_tokens -= end - start
        self._is_untouched = False
        for unit in units_between(request, start, end):
            self._encoder_tokens -= self._cost(unit)
            self._encoding.add(unit.key)

    def _price(self, start: int) -> float:
        """Of one token behind `start` others, in tokens without any before them."""
        return 1 + start / self._context_of_double if self._context_of_double else 1.0

    def _affordable(self, start: int, limit: int) -> int:
        """Tokens behind `start` others that cost `limit`; a few at least, as the step has a price of its own."""
        return max(int(limit / self._price(start)), min(limit, _LEAST_TOKENS))

    def _cost(self, unit: MediaUnit) -> int:
        return 0 if unit.key in self._encoding or self._is_encoded(unit.key) else unit.end - unit.start


def units_between(request: Request, start: int, end: int) -> list[MediaUnit]:
    """Units with tokens from `start` to `end`, in order."""
    units = request.units
    if not units or start >= units[-1].end:
        return []
    first = max(bisect_right(request.unit_starts, start) - 1, 0)
    last = bisect_right(request.unit_starts, end - 1)
    return [unit for unit in units[first:last] if unit.end > start]
