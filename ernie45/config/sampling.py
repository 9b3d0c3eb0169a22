"""How the tokens of one request are chosen and when it ends.

Knows nothing about logits, text or the request itself.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeGuard

from ernie45.config.errors import RequestError

_MAX_SEED = 2**63 - 1
GRAMMAR_KINDS = ("json_schema", "regex", "lark")
MAX_GRAMMAR_CHARACTERS = 2**18


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What the text of an answer must match.

    kind   json_schema: `text` is a JSON schema; regex: a regular expression over the whole answer; lark: a grammar in
           llguidance's Lark dialect.
    after  id of the token behind which the constraint begins (the end of a thought); None: it holds from the first token.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    after: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in GRAMMAR_KINDS:
            raise RequestError(f"grammar.kind ({self.kind!r}) must be one of {', '.join(GRAMMAR_KINDS)}; choose one of them")
        if not isinstance(self.text, str) or not 0 < len(self.text) <= MAX_GRAMMAR_CHARACTERS:
            size = f"{len(self.text)} characters" if isinstance(self.text, str) else repr(self.text)
            raise RequestError(f"grammar.text ({size}) must be a text of 1 to {MAX_GRAMMAR_CHARACTERS} characters; shorten it")
        if self.after is not None:
            _whole("grammar.after", self.after, 0, None, "leave it out to constrain the answer from its first token")


class TokenLogprob(NamedTuple):
    """Log-probability (natural) of one token among all the model could have said, and the likeliest ones beside it.

    rank: 1 for the likeliest token. top: (token id, logprob), likeliest first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget:
    """How long a thought that the prompt left open may be.

    max_tokens     generated tokens at most before the thought is closed for the model.
    end_token_ids  the tokens put in its place to close it, e.g. those of a line end and `</think>`; the last one is the end of
                   the thought, and a model that writes it by itself has closed the thought.
    """

    max_tokens: int
    end_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _whole("thinking.max_tokens", self.max_tokens, 0, None, "leave the budget out for a thought without bound")
        object.__setattr__(self, "end_token_ids", _token_ids("thinking.end_token_ids", self.end_token_ids))
        if not self.end_token_ids or self.end_token_ids[-1] in self.end_token_ids[:-1]:
            raise RequestError(
                f"thinking.end_token_ids ({list(self.end_token_ids)}) must end with the id that ends a thought, and have it "
                "nowhere else; correct the ids"
            )

    @property
    def end_id(self) -> int:
        """The token that ends a thought."""
        return self.end_token_ids[-1]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Choice and end of one request's tokens.

    max_tokens      tokens to generate at most; None: until the context is full.
    min_tokens      before so many tokens, none of `stop_token_ids` can be drawn.
    temperature     logits are divided by it; 0 is greedy, and then the filters below have no effect.
    top_k           keep the k likeliest tokens; 0 keeps all.
    top_p           then keep the smallest set of the likeliest tokens with at least this probability; 1 keeps all.
    min_p           and of these the tokens with at least this share of the likeliest one's probability; 0 keeps all.
    repetition_penalty  above 1: logits of tokens seen in prompt or answer are divided by it if positive, else multiplied.
    frequency_penalty   taken from a logit for each time its token is in the answer so far.
    presence_penalty    taken once from the logit of every token that is in the answer so far.
    logit_bias      (token id, value) added to logits.
    bad_words       token sequences that the answer never has: the last token of one cannot be drawn behind the others.
    seed            same seed, same prompt, same tokens, whatever runs beside; None: the engine draws one.
    stop_token_ids  any of these ends the request with finish reason "stop".
    logprobs        report the log-probability of each drawn token, and of so many of the likeliest beside it; None: none.
    prompt_logprobs the same for the prompt's tokens.
    scaled_logprobs `logprobs` are of the logits divided by the temperature: without filters, what a token was drawn from.
    grammar         what the answer must match.
    thinking        bound on an open thought.

    Order: repetition, frequency and presence penalties, logit_bias; then what cannot be drawn at all: stop ids before
    min_tokens, bad_words, what the grammar forbids; then temperature, top_k, top_p, min_p. The end of a thought that is over
    its budget goes before all of these. Where min_tokens and bad_words leave nothing that the grammar allows, the grammar wins.
    Log-probabilities are those of the model itself, before all of these but, where asked for, the temperature.

    Raises RequestError for a value outside its range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    scaled_logprobs: bool = False
    grammar: Grammar | None = None
    thinking: ThinkingBudget | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, None, "leave it out to generate until the context is full")
        if not _is_number(self.temperature) or self.temperature < 0:
            raise RequestError(f"temperature ({self.temperature!r}) must be a number of at least 0; use 0 for greedy decoding")
        _whole("top_k", self.top_k, 0, None, "use 0 to keep all tokens")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise RequestError(f"top_p ({self.top_p!r}) must be above 0 and at most 1; use 1 to keep all tokens")
        if self.seed is not None:
            _whole("seed", self.seed, 0, _MAX_SEED, "leave it out for a fresh seed")
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        self._check_min_tokens()
        self._check_weights()
        self._check_bad_words()
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, None, "leave it out to get none")
        if self.scaled_logprobs and self.temperature == 0:
            raise RequestError("scaled_logprobs must not be asked for at temperature 0, where nothing is drawn; leave it out")
        self._check_grammar()

    def check_model(self, vocab_size: int, max_logprobs: int) -> None:
        """RequestError for token ids that a model does not have, and for more log-probabilities than it gives."""
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > max_logprobs:
                raise RequestError(f"{name} ({getattr(self, name)}) must be at most {max_logprobs}; ask for fewer")
        ids = {
            "logit_bias": [token_id for token_id, _ in self.logit_bias],
            "bad_words": [token_id for word in self.bad_words for token_id in word],
            "stop_token_ids": self.stop_token_ids,
            "thinking.end_token_ids": self.thinking.end_token_ids if self.thinking is not None else (),
            "grammar.after": () if self.grammar is None or self.grammar.after is None else (self.grammar.after,),
        }
        for name, found in ids.items():
            if found and max(found) >= vocab_size:
                raise RequestError(
                    f"{name} ({max(found)}) must be ids from 0 to {vocab_size - 1}; use the model's own tokenizer"
                )

    @property
    def needs_tokens(self) -> bool:
        """Whether the choice of a token depends on the tokens before it other than through the logits."""
        return bool(
            self.min_tokens
            or self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.bad_words
            or self.grammar is not None
            or self.thinking is not None
        )

    def _check_min_tokens(self) -> None:
        _whole("min_tokens", self.min_tokens, 0, None, "use 0 to let the answer end at once")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens}); "
                "lower the first or raise the second"
            )

    def _check_weights(self) -> None:
        _within("min_p", self.min_p, 0, 1, "use 0 to keep all tokens")
        _within("frequency_penalty", self.frequency_penalty, -2, 2, "use 0 for none")
        _within("presence_penalty", self.presence_penalty, -2, 2, "use 0 for none")
        if not _is_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise RequestError(f"repetition_penalty ({self.repetition_penalty!r}) must be a number above 0; use 1 for none")
        for entry in self.logit_bias:
            if not isinstance(entry, tuple) or len(entry) != 2:
                raise RequestError(f"logit_bias ({entry!r}) must be pairs of a token id and a value; correct it")
            _whole("logit_bias", entry[0], 0, None, "give token ids")
            _within("logit_bias", entry[1], -100, 100, "choose a value in this range")
        if not isinstance(self.logit_bias, tuple):
            object.__setattr__(self, "logit_bias", tuple(self.logit_bias))

    def _check_bad_words(self) -> None:
        words = tuple(_token_ids("bad_words", word) for word in self.bad_words)
        if not all(words):
            raise RequestError("bad_words ([]) must be sequences of at least one token id; remove the empty one")
        object.__setattr__(self, "bad_words", words)

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not self.stop_token_ids:
            raise RequestError(
                "stop_token_ids ([]) must not be empty beside a grammar, as one of them ends the answer; "
                "give the model's, and do not ignore its end"
            )
        if self.thinking is not None and self.grammar.after != self.thinking.end_id:
            raise RequestError(
                f"grammar.after ({self.grammar.after}) must be the last of thinking.end_token_ids ({self.thinking.end_id}), "
                "so that the grammar begins behind the thought; set it, or leave out thinking"
            )


def _token_ids(name: str, ids: Iterable[int]) -> tuple[int, ...]:
    found = tuple(ids)
    for token_id in found:
        _whole(name, token_id, 0, None, "give token ids")
    return found


def _within(name: str, value: object, low: float, high: float, way_out: str) -> None:
    if not _is_number(value) or not low <= value <= high:
        raise RequestError(f"{name} ({value!r}) must be a number from {low} to {high}; {way_out}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object, low: int, high: int | None, way_out: str) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not good:
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} ({value!r}) must be a whole number {limits}; {way_out}")
