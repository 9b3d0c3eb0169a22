"""Rewards as z-scores by domain, so that a domain whose judge is generous or strict does not drown the others.

Knows nothing about judges.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ernie45.config.errors import ConfigError

_FLOOR = 1e-6


class Normaliser:
    """z = (r - mean_d) / std_d over a domain d; 0 where std_d is below 1e-6. What is masked neither counts nor changes.

    batch: mean and standard deviation (of the population) are those of the domain's answers in the batch at hand.
    running: of the domain's moving averages, brought up to date by the batch first: with a_d the decay and n the batches that
    had the domain, s0 <- a s0 + 1 - a, s1 <- a s1 + (1 - a) mean(r), s2 <- a s2 + (1 - a) mean(r^2); mean = s1 / s0 and
    std^2 = s2 / s0 - mean^2. So the first batch gives the same as "batch".

    That ERNIE 4.5 normalises rewards by domain in every iteration is published; the formula is not.
    """

    def __init__(self, kind: str, decay: float) -> None:
        self.kind, self._decay = kind, decay
        self._sums: dict[str, list[float]] = {}

    def __call__(self, values: Sequence[float], domains: Sequence[str], mask: Sequence[bool]) -> list[float]:
        """Normalised values; 0 where the mask is False. Lists of equal length."""
        if self.kind == "none":
            return [value if kept else 0.0 for value, kept in zip(values, mask, strict=True)]
        moments = {}
        for domain in sorted(set(domains)):
            own = [value for value, of, kept in zip(values, domains, mask, strict=True) if kept and of == domain]
            if own:
                moments[domain] = self._moments(domain, own)
        return [
            _score(value, *moments[domain]) if kept else 0.0 for value, domain, kept in zip(values, domains, mask, strict=True)
        ]

    def _moments(self, domain: str, values: list[float]) -> tuple[float, float]:
        """Mean and standard deviation to normalise by."""
        mean = math.fsum(values) / len(values)
        if self.kind == "batch":
            return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        sums = self._sums.setdefault(domain, [0.0, 0.0, 0.0])
        for place, new in enumerate((1.0, mean, math.fsum(value * value for value in values) / len(values))):
            sums[place] = self._decay * sums[place] + (1 - self._decay) * new
        running = sums[1] / sums[0]
        return running, math.sqrt(max(0.0, sums[2] / sums[0] - running**2))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: plain numbers."""
        return {"kind": self.kind, "sums": {domain: list(sums) for domain, sums in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ConfigError if it is that of another kind of normalisation."""
        if state["kind"] != self.kind:
            raise ConfigError(f"rewards.normalise ({self.kind!r}) must be {state['kind']!r} as in the run that goes on")
        self._sums = {domain: list(sums) for domain, sums in state["sums"].items()}


def _score(value: float, mean: float, deviation: float) -> float:
    return 0.0 if deviation < _FLOOR else (value - mean) / deviation
