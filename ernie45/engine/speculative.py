"""When to guess tokens ahead and how many, and the books of how many came true.

Knows nothing about tensors or the model: guesses come from a proposer, and the scheduler and the runner check them.

Checking is exact without further arithmetic: the token at a place is a function of the logits there, the request's parameters,
its seed and the tokens before (`sampler`). A step computes the guesses like any other tokens and draws a token at each place;
guesses are kept as long as they equal what was drawn. So an answer is token for token the one without speculation, and has
its distribution.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Protocol

from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.chunks import Chunk
from ernie45.engine.ngram import NgramIndex
from ernie45.engine.request import Request

MEASURED_EVERY = 64  # steps; one of so many runs without guesses, which tells what they cost
RETRIED_AFTER = 32  # tokens of a request without guesses, after which one guess is tried again
_FORGET = 0.98  # of what steps have cost, for each step
_MEMORY = 0.9  # of a request's successes, for each trial
_HALF_ROWS = 8  # of a step in which a row is taken to cost half its time, until it is known
_MARGIN = 1.1  # a guess must promise so much more than it costs; what is measured is not exact


class Proposer(Protocol):
    """Guesses tokens."""

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        """For each request and number: so many tokens, or fewer, that may follow its tokens. Called before every step."""
        ...

    def forget(self, request_id: str) -> None:
        """The request is gone."""
        ...


class NgramProposer:
    """Look-up in each request's own tokens."""

    def __init__(self, config: SpeculationConfig) -> None:
        self._config = config
        self._indices: dict[str, NgramIndex] = {}

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        return [self._index(request).propose(count) for request, count in wanted]

    def forget(self, request_id: str) -> None:
        self._indices.pop(request_id, None)

    def _index(self, request: Request) -> NgramIndex:
        index = self._indices.get(request.request_id)
        if index is None:
            index = NgramIndex(request.tokens, self._config.min_ngram, self._config.max_ngram)
            self._indices[request.request_id] = index
        return index


class StepCost:
    """What one more row costs in a decode step, as a share of the step: a straight line through the last steps' times."""

    def __init__(self) -> None:
        self._weight = self._rows = self._rows2 = self._time = self._rows_time = 0.0

    def observe(self, num_rows: int, seconds: float) -> None:
        """A step of decoding alone took so long."""
        self._weight = self._weight * _FORGET + 1
        self._rows = self._rows * _FORGET + num_rows
        self._rows2 = self._rows2 * _FORGET + num_rows**2
        self._time = self._time * _FORGET + seconds
        self._rows_time = self._rows_time * _FORGET + num_rows * seconds

    def share(self, num_rows: int) -> float:
        """Time of one more row, relative to the time of one row among `num_rows` without it; from 0 (free) to 1."""
        variance = self._weight * self._rows2 - self._rows**2
        if self._weight < 4 or variance <= 1e-6 * self._rows2:
            return num_rows / (num_rows + _HALF_ROWS)
        slope = (self._weight * self._rows_time - self._rows * self._time) / variance
        step = self._time / self._weight + slope * (num_rows - self._rows / self._weight)
        if step <= 0:
            return 1.0
        return min(max(slope * num_rows / step, 0.0), 1.0)


class _Record:
    """How guesses of one request have fared: successes and trials, old ones forgotten; and tokens since the last guess."""

    __slots__ = ("num_idle", "successes", "trials")

    def __init__(self, rate: float) -> None:
        # Two trials' worth of belief in the rate of all.
        self.successes, self.trials, self.num_idle = 2 * rate, 2.0, 0

    @property
    def rate(self) -> float:
        return self.successes / self.trials

    def observe(self, num_accepted: int, num_proposed: int) -> None:
        for index in range(min(num_accepted + 1, num_proposed)):
            self.successes = self.successes * _MEMORY + (index < num_accepted)
            self.trials = self.trials * _MEMORY + 1


class Speculator:
    """Gives requests their drafts before a step and learns from it.

    A guess at distance d comes true with about rate ** d, and then saves one row's part of a step; it costs a row in any case.
    So a request gets as many guesses as pay: d with rate ** d above the share that a row costs. Where not even one pays it is
    off, and tries one again after a while.
    """

    def __init__(self, config: SpeculationConfig, proposer: Proposer, clock: Callable[[], float] = perf_counter) -> None:
        self._config = config
        self._proposer = proposer
        self._clock = clock
        self._cost = StepCost()
        self._records: dict[str, _Record] = {}
        self._all = _Record(0.6)
        self._num_steps = 0
        self._started = 0.0
        self._before: dict[str, tuple[int, int]] = {}
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_drafts = 0

    def draft(self, requests: Iterable[Request]) -> None:
        """Set the draft of every request that runs; called before each step is planned."""
        self._started = self._clock()
        self._num_steps += 1
        decoding = []
        for request in requests:
            request.draft = ()
            if request.is_decoding:
                decoding.append(request)
        measures = self._num_steps % MEASURED_EVERY == 0
        share = _MARGIN * self._cost.share(len(decoding))
        log_share = math.log(max(share, 1e-9))
        wanted = []
        for request in decoding:
            # The last token of an answer is drawn and never computed, so guesses end one before it.
            room = request.limit - request.num_tokens - 1
            count = 0 if measures else min(self._num_worthwhile(self._record(request), log_share), room)
            if count > 0:
                wanted.append((request, count))
        for (request, _), tokens in zip(wanted, self._proposer.propose(wanted), strict=True):
            request.draft = tuple(tokens if request.history is None else request.history.fitting(tokens))

    def planned(self, chunks: Sequence[Chunk]) -> None:
        """Note what the step is about to check; the scheduler may have cut drafts."""
        self._before = {chunk.request.request_id: (chunk.request.num_tokens, len(chunk.request.draft)) for chunk in chunks}

    def observe(self, chunks: Sequence[Chunk]) -> None:
        """Learn from a step that has run."""
        num_rows, only_decodes = 0, bool(chunks)
        for request, start, end, samples in chunks:
            num_tokens, num_proposed = self._before[request.request_id]
            count = request.num_tokens - num_tokens
            num_rows += end - start
            only_decodes = only_decodes and samples and end - start == 1 + num_proposed
            record = self._record(request)
            if request.state == "finished":
                self._records.pop(request.request_id, None)
                self._proposer.forget(request.request_id)
            if not num_proposed:
                record.num_idle += count
                continue
            num_accepted = max(count - 1, 0)
            record.num_idle = 0
            # An answer that ended inside its draft says nothing about the guess behind its end.
            num_tried = num_accepted if request.state == "finished" else num_proposed
            for books in (record, self._all):
                books.observe(num_accepted, num_tried)
            self.num_drafts += 1
            self.num_draft_tokens += num_proposed
            self.num_accepted_tokens += num_accepted
        if only_decodes:
            self._cost.observe(num_rows, self._clock() - self._started)

    def forget(self, request_id: str) -> None:
        """The request was aborted."""
        self._records.pop(request_id, None)
        self._proposer.forget(request_id)

    def _record(self, request: Request) -> _Record:
        record = self._records.get(request.request_id)
        if record is None:
            record = self._records[request.request_id] = _Record(self._all.rate)
        return record

    def _num_worthwhile(self, record: _Record, log_share: float) -> int:
        rate, most = record.rate, self._config.num_draft_tokens
        if 0 < rate < 1 and log_share < 0:
            most = min(int(log_share / math.log(rate)), most)
        elif rate <= 0 or log_share >= 0:
            most = 0
        return most or int(record.num_idle >= RETRIED_AFTER)
