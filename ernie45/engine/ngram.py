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
        # The newest `min_ngram` tokens as one number, of the tokens seen so far.
        self._key, self._mask, self._num_seen = 0, (1 << _BITS * min_ngram) - 1, 0
        self._last: dict[int, int] = {}
        # For each indexed place the one before it with the same run, or -1: chains through the sequence.
        self._before = array("q")

    def propose(self, num_tokens: int) -> list[int]:
        """Guesses for the next `num_tokens` tokens; none if the newest tokens are new."""
        self._catch_up()
        tokens, length = self._tokens, len(self._tokens)
        place = self._last.get(self._key, -1) if num_tokens > 0 and length > self._min else -1
        if place < 0:
            return []
        best, best_run, num_compared = -1, 0, 0
        while place >= 0 and num_compared < _MAX_PLACES:
            run = self._run_length(place)
            if run > best_run:
                best, best_run = place, run
            if run == self._max:
                break
            place, num_compared = self._before[place], num_compared + 1
        # Past the end the guesses themselves go on: what repeats with a short period is guessed as long as is wanted.
        period = length - 1 - best
        return [tokens[best + 1 + index % period] for index in range(num_tokens)]

    def _catch_up(self) -> None:
        """Index every place but the last, whose run is what is looked up."""
        tokens, last, before, key = self._tokens, self._last, self._before, self._key
        for place in range(self._num_seen, len(tokens)):
            if place >= self._min:  # the run that ends before this token
                before.append(last.get(key, -1))
                last[key] = place - 1
            elif place:
                before.append(-1)
            key = (key << _BITS | tokens[place]) & self._mask
        self._num_seen, self._key = len(tokens), key

    def _run_length(self, place: int) -> int:
        """How many tokens up to `place` are those up to the end, at most `max_ngram`."""
        tokens, last = self._tokens, len(self._tokens) - 1
        run = self._min
        while run < self._max and run <= place and tokens[place - run] == tokens[last - run]:
            run += 1
        return run
