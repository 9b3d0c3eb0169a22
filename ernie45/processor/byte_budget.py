"""A bound on bytes that many hold at once: who comes when there are none left waits for its turn.

Knows nothing about downloads.
"""

import asyncio
from collections import deque


class ByteBudget:
    """So many bytes for all who share them, handed out in the order in which they were asked for. For one event loop."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = self.num_free = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, wanted: int) -> int:
        """Wait until there are so many, or all if more are wanted; the number to give back."""
        number = min(wanted, self.num_bytes)
        if self._waiting or number > self.num_free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((number, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.num_free += number
                self._serve()
                raise
        else:
            self.num_free -= number
        return number

    def give(self, number: int) -> None:
        """Back."""
        self.num_free += number
        assert self.num_free <= self.num_bytes, (self.num_free, self.num_bytes)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.num_free):
            number, turn = self._waiting.popleft()
            if not turn.done():
                self.num_free -= number
                turn.set_result(None)


class ByteShare:
    """What one download has of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._number = 0
        self._waited_s = 0.0
        self._waits_since: float | None = None

    @property
    def waited_s(self) -> float:
        """Seconds in which it has waited for others, so far."""
        since = self._waits_since
        return self._waited_s + (0.0 if since is None else asyncio.get_running_loop().time() - since)

    async def take(self, number: int) -> None:
        """In place of what it had: a redirect or a second try begins anew."""
        self.give_back()
        self._waits_since = asyncio.get_running_loop().time()
        try:
            self._number = await self._budget.take(number)
        finally:
            self._waited_s, self._waits_since = self.waited_s, None

    def shrink(self, number: int) -> None:
        """Keep no more than so many."""
        if number < self._number:
            self._budget.give(self._number - number)
            self._number = number

    def give_back(self) -> None:
        """All of it; fine to call again."""
        self.shrink(0)
