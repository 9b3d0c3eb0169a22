"""How an engine guesses tokens ahead, so that one step can yield several.

Knows nothing about models, requests or how a guess is checked.
"""

from dataclasses import dataclass
from typing import Literal

from ernie45.config.errors import ConfigError

METHODS = ("none", "ngram", "mtp")


@dataclass(frozen=True, kw_only=True)
class SpeculationConfig:
    """Speculative decoding. It changes speed alone: every answer is the one that would come without it.

    method            none; ngram: what followed the last time that the newest tokens occurred, in prompt or answer (any model);
                      mtp: the model's own multi-token-prediction module (text models that have one).
    num_draft_tokens  guesses for one request in one step at most. Fewer, or none, while they do not pay.
    min_ngram         tokens that must repeat for a look-up to guess.
    max_ngram         of several places the one where most tokens repeat, counted up to so many, is believed.
    """

    method: Literal["none", "ngram", "mtp"] = "none"
    num_draft_tokens: int = 4
    min_ngram: int = 2
    max_ngram: int = 8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"speculation method ({self.method!r}) must be one of {', '.join(METHODS)}; choose one of them")
        for name in ("num_draft_tokens", "min_ngram", "max_ngram"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least 1; change it or leave it out")
        if self.max_ngram < self.min_ngram:
            raise ConfigError(
                f"max_ngram ({self.max_ngram}) must be at least min_ngram ({self.min_ngram}); raise it or lower the other"
            )
