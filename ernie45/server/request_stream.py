"""What the engine has said about one request and nobody has read yet.

Knows nothing about who sends or reads. Tokens that wait are merged, so a reader who never comes costs a few bytes a token.
"""

import asyncio
from array import array
from collections import deque
from dataclasses import replace

from ernie45.config.sampling import TokenLogprob
from ernie45.server.messages import Accepted, Dead, Refused, Tokens

RequestReport = Accepted | Tokens | Refused | Dead


class RequestStream:
    """A queue of reports with one reader. All calls belong to one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Accepted | Refused | Dead | Tokens | _Merged] = deque()
        self._arrived = asyncio.Event()

    def put(self, report: RequestReport) -> None:
        """Never waits."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(report, Tokens) and isinstance(last, Tokens | _Merged):
            if isinstance(last, Tokens):
                last = self._waiting[-1] = _Merged(last)
            last.add(report)
        else:
            self._waiting.append(report)
            self._arrived.set()

    async def get(self) -> RequestReport:
        """The next report; all tokens that wait as one."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        first = self._waiting.popleft()
        return first.whole() if isinstance(first, _Merged) else first


class _Merged:
    """Reports of tokens, put together."""

    def __init__(self, first: Tokens) -> None:
        self._token_ids = array("q", first.token_ids)
        self._logprobs: list[TokenLogprob] | None = None if first.logprobs is None else list(first.logprobs)
        # With the first tokens or not at all: nothing of these is lost by looking at the first report only.
        self._prompt_logprobs = first.prompt_logprobs
        self._queue_s = first.queue_s
        self._num_tokens = first.num_tokens
        self._num_cached_tokens = first.num_cached_tokens
        self._last = first

    def add(self, tokens: Tokens) -> None:
        self._token_ids.extend(tokens.token_ids)
        if tokens.logprobs is not None:
            if self._logprobs is None:
                self._logprobs = []
            self._logprobs.extend(tokens.logprobs)
        self._num_tokens += tokens.num_tokens
        self._num_cached_tokens = max(self._num_cached_tokens, tokens.num_cached_tokens)
        self._last = tokens

    def whole(self) -> Tokens:
        return replace(
            self._last,
            token_ids=tuple(self._token_ids),
            num_tokens=self._num_tokens,
            num_cached_tokens=self._num_cached_tokens,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            queue_s=self._queue_s,
        )
