"""Guesses by look-up: what followed the last time that the newest tokens occurred.

Knows nothing about models, requests or whether guesses come true. Source: prompt-lookup decoding (Saxena, 2023).
"""

from array import array

_BITS = 32  # of a token id within a key; wider than any vocabulary
_MAX_PLACES = 8  # earlier places compared for the longest match: the newest ones


class NgramIndex:
    """Where each run of `min_ngram` tokens has occurred in one growing sequence; each token is looked at once.

    Costs about 150 bytes a token, and a time for each guess that does not grow with the sequence.
    """

    def __init__(self, tokens: "array[int]", min_ngram: int, max_ngram: int) -> None:
        """tokens: of the sequence, kept by reference."""
        self._tokens = tokens
        self._min, self._max = min_ngram, max_ngram
        self._last: dict[int, int] = {}
        # For each indexed place the one before it with the same run, or -1: chains through the sequence.
        self._before = array("q")

    def propose(self, num_tokens: int) -> list[int]:
        """Guesses for the next `num_tokens` tokens; none if the newest tokens are new."""
        self._catch_up()
        tokens, length = self._tokens, len(self._tokens)
        if num_tokens < 1 or length < self._min:
            return []
        best, best_run = -1, 0
        place, num_seen = self._last.get(self._key(length - 1), -1), 0
        while place >= 0 and num_seen < _MAX_PLACES:
            run = self._run_length(place)
            if run > best_run:
                best, best_run = place, run
            if run == self._max:
                break
            place, num_seen = self._before[place], num_seen + 1
        if best < 0:
            return []
        # Past the end the guesses themselves go on: what repeats with a short period is guessed as long as is wanted.
        period = length - 1 - best
        return [tokens[best + 1 + index % period] for index in range(num_tokens)]

    def _catch_up(self) -> None:
        """Index every place but the last, whose run is what is looked up."""
        for place in range(len(self._before), len(self._tokens) - 1):
            if place < self._min - 1:
                self._before.append(-1)
                continue
            key = self._key(place)
            self._before.append(self._last.get(key, -1))
            self._last[key] = place

    def _key(self, end: int) -> int:
        key = 0
        for place in range(end + 1 - self._min, end + 1):
            key = key << _BITS | self._tokens[place]
        return key

    def _run_length(self, place: int) -> int:
        """How many tokens up to `place` are those up to the end, at most `max_ngram`."""
        tokens, last = self._tokens, len(self._tokens) - 1
        run = self._min
        while run < self._max and run <= place and tokens[place - run] == tokens[last - run]:
            run += 1
        return run
