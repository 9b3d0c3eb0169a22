"""How the tokens of one request are chosen and when it ends.

Knows nothing about logits, text or the request itself.
"""

import math
from dataclasses import dataclass

from ernie45.config.errors import RequestError

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Choice and end of one request's tokens.

    max_tokens      tokens to generate at most; None: until the context is full.
    temperature     logits are divided by it; 0 is greedy, and then the three filters below have no effect.
    top_k           keep the k likeliest tokens; 0 keeps all.
    top_p           then keep the smallest set of the likeliest tokens with at least this probability; 1 keeps all.
    seed            same seed, same prompt, same tokens, whatever runs beside; None: the engine draws one.
    stop_token_ids  any of these ends the request with finish reason "stop".

    Raises RequestError for a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

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
