"""What the choice of a request's next token needs to know of the tokens before it, kept as they come.

Knows nothing about logits, devices or scheduling. Everything here is a function of the request's tokens alone.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher

from ernie45.config.sampling import SamplingParams
from ernie45.engine.grammar import GrammarState
from ernie45.engine.thinking import forced_token


class Counts(NamedTuple):
    """Tokens that penalties touch: ids int64 [N], each once, and how often each is in the answer, int64 [N].

    With a repetition penalty the prompt's tokens are among them, some of them 0 times in the answer.
    """

    ids: np.ndarray
    counts: np.ndarray


class Constraint(NamedTuple):
    """What the next token may be.

    forced: it can only be this one. allowed: bool [V], if a grammar holds; what is banned is left out already. banned: ids.
    """

    forced: int | None
    allowed: np.ndarray | None
    banned: tuple[int, ...]


class History:
    """Follows the tokens of one request, which only ever grow; each is looked at once."""

    def __init__(self, params: SamplingParams, tokens: "array[int]", num_prompt_tokens: int, vocab_size: int) -> None:
        """tokens: of the request, prompt and answer, kept by reference."""
        self._params = params
        self._tokens = tokens
        self._num_prompt_tokens = num_prompt_tokens
        self._vocab_size = vocab_size
        self._num_seen = num_prompt_tokens
        self._is_closed = False
        self._grammar: GrammarState | None = None
        self._ids, self._counts = array("q"), array("q")
        self._slot_of: dict[int, int] = {}
        self._counts_tokens = bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)
        if params.repetition_penalty != 1:
            for token_id in dict.fromkeys(tokens[:num_prompt_tokens]):
                self._count(token_id, 0)

    def follow_grammar(self, matcher: LLMatcher) -> None:
        """Hold the answer to a grammar, from a matcher at its beginning. Before the first token is drawn."""
        grammar = self._params.grammar
        assert grammar is not None
        assert self._num_seen == self._num_prompt_tokens, self._num_seen
        self._grammar = GrammarState(matcher, grammar.after, self._params.stop_token_ids, self._vocab_size)

    def counts(self, draft: Sequence[int] = ()) -> Counts | None:
        """What penalties need, as if the draft had been drawn already; None if there are no penalties."""
        if not self._counts_tokens:
            return None
        self._catch_up()
        ids, counts = np.array(self._ids), np.array(self._counts)
        new: dict[int, int] = {}
        for token_id in draft:
            slot = self._slot_of.get(token_id)
            if slot is None:
                new[token_id] = new.get(token_id, 0) + 1
            else:
                counts[slot] += 1
        if new:
            ids, counts = np.append(ids, list(new.keys())), np.append(counts, list(new.values()))
        return Counts(ids, counts)

    def constraint(self, draft: Sequence[int] = ()) -> Constraint:
        """What the token behind the request's tokens and the draft may be."""
        self._catch_up()
        params, num_generated = self._params, self._num_seen - self._num_prompt_tokens + len(draft)
        if params.thinking is not None:
            is_closed = self._is_closed or params.thinking.end_id in draft
            forced = forced_token(params.thinking, num_generated, is_closed)
            if forced is not None:
                return Constraint(forced, None, ())
        banned = self._banned(draft, num_generated)
        allowed = None
        if self._grammar is not None:
            state = self._grammar.ahead(draft) if draft else self._grammar
            allowed = state.allowed(banned)
            if not state.begun:  # an end inside the thought would leave the answer empty, against the grammar
                banned = (*banned, *params.stop_token_ids)
        return Constraint(None, allowed, banned)

    def fitting(self, draft: Sequence[int]) -> Sequence[int]:
        """The part of a draft that a grammar lets pass: what is behind it would be drawn otherwise for certain."""
        self._catch_up()
        return draft if self._grammar is None else self._grammar.fitting(draft)

    def is_whole(self) -> bool:
        """Whether the answer, with all of the known tokens, is a whole text of its grammar; True without one."""
        self._catch_up()
        return self._grammar is None or self._grammar.may_end

    def _catch_up(self) -> None:
        new = self._tokens[self._num_seen :]
        if not new:
            return
        self._num_seen += len(new)
        if self._counts_tokens:
            for token_id in new:
                self._count(token_id, 1)
        if self._params.thinking is not None:
            self._is_closed = self._is_closed or self._params.thinking.end_id in new
        if self._grammar is not None:
            self._grammar.advance(new)

    def _count(self, token_id: int, times: int) -> None:
        slot = self._slot_of.setdefault(token_id, len(self._ids))
        if slot == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0)
        self._counts[slot] += times

    def _banned(self, draft: Sequence[int], num_generated: int) -> tuple[int, ...]:
        """Stop ids before min_tokens, and the last token of every bad word whose others have just been said."""
        params = self._params
        banned = set(params.stop_token_ids) if num_generated < params.min_tokens else set()
        if params.bad_words:
            longest = max(map(len, params.bad_words)) - 1
            answer = (*self._tokens[max(self._num_seen - longest, self._num_prompt_tokens) : self._num_seen], *draft)
            for word in params.bad_words:
                num_before = len(word) - 1
                if num_before <= len(answer) and answer[len(answer) - num_before :] == word[:-1]:
                    banned.add(word[-1])
        # Who forbids every token gets what he would get without: something has to be drawn.
        return tuple(banned) if len(banned) < self._vocab_size else ()
