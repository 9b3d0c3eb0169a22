"""Where one answer is in its grammar, and which tokens may come next.

Knows nothing about logits, or about how a grammar is written or compiled.
"""

import logging
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

_log = logging.getLogger("ernie45.engine")


class GrammarState:
    """Follows one answer's tokens. A function of these tokens alone: fed again from the start, it comes to the same place.

    after: id of the token behind which the grammar begins; None: at the first token.
    """

    def __init__(self, matcher: LLMatcher, after: int | None, stop_token_ids: Sequence[int], vocab_size: int) -> None:
        self._matcher = matcher
        self._after = after
        self._begun = after is None
        self._stop_token_ids = list(stop_token_ids)
        self._vocab_size = vocab_size

    @property
    def begun(self) -> bool:
        """Whether the next token is held by the grammar."""
        return self._begun

    @property
    def may_end(self) -> bool:
        """Whether the text so far is whole. False too where llguidance's bounds have stopped it halfway."""
        return not self._begun or self._matcher.is_accepting()

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take the next tokens of the answer."""
        for token_id in token_ids:
            if self._begun:
                if token_id not in self._stop_token_ids:  # it ends the answer, and is no part of its text
                    self._matcher.consume_token(token_id)
            elif token_id == self._after:
                self._begun = True

    def fitting(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Of guesses for the next tokens as many as keep to the grammar one after the other; none from a stop id on."""
        first = 0
        if not self._begun:
            if self._after not in token_ids:
                return token_ids
            first = token_ids.index(self._after) + 1
        rest = list(token_ids[first:])
        end = next((index for index, token_id in enumerate(rest) if token_id in self._stop_token_ids), len(rest))
        return token_ids[: first + self._matcher.validate_tokens(rest[:end])]

    def ahead(self, token_ids: Sequence[int]) -> "GrammarState":
        """A copy that is these tokens further on."""
        copy = GrammarState(self._matcher.deep_copy(), self._after, self._stop_token_ids, self._vocab_size)
        copy._begun = self._begun
        copy.advance(token_ids)
        return copy

    def allowed(self, banned: Sequence[int]) -> np.ndarray | None:
        """Which tokens may come next, bool [V]; None if all may, as the grammar has not begun.

        A stop id may come exactly where the text may end. `banned` tokens are left out, unless nothing would be left.
        """
        if not self._begun:
            return None
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(mask, bitorder="little")[: self._vocab_size].view(bool)
        if self._matcher.is_error():
            # One of llguidance's bounds on its own work. The text cannot go on within the grammar, and nobody can be asked.
            _log.warning("a grammar became too complex to follow; its answer ends here: %s", self._matcher.get_error())
            allowed_V[:] = False
        only_text_V = allowed_V.copy()
        only_text_V[self._stop_token_ids] = False
        if self._matcher.is_accepting() or not only_text_V.any():
            only_text_V[self._stop_token_ids] = True
        rest_V = only_text_V.copy()
        rest_V[list(banned)] = False
        return rest_V if rest_V.any() else only_text_V
