"""How the tokens of one request are chosen and when it ends.

Knows nothing about logits, text or the request itself.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ernie45.config.errors import RequestError

_MAX_SEED = 2**63 - 1


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
    grammar         what the answer must match.
    thinking        bound on an open thought.

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
        if not isinstance(self.stop_token_ids, tuple):
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token_id in self.stop_token_ids:
            _whole("stop_token_ids", token_id, 0, None, "give token ids")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object, low: int, high: int | None, way_out: str) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not good:
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} ({value!r}) must be a whole number {limits}; {way_out}")
