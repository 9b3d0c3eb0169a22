"""Settings of rejection sampling: a model's own answers, kept where a reward accepts them.

Knows nothing about models or rewards.
"""

from dataclasses import dataclass
from typing import Literal

from ernie45.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """How answers are sampled and which are kept.

    samples: answers to each prompt. keep: of the accepted ones that differ, at most. threshold: least reward of an accepted
    answer. thinking: "on" or "off". batch: prompts between two saves. An answer that was cut off is never kept.
    """

    samples: int = 4
    keep: int = 1
    threshold: float = 1.0
    thinking: Literal["on", "off"] = "on"
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 2048
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("samples", "keep", "max_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be above 0")
        if self.keep > self.samples:
            raise ConfigError(f"keep ({self.keep}) must be at most samples ({self.samples}); sample more")
        if self.temperature <= 0 and self.samples > 1:
            raise ConfigError(
                f"temperature ({self.temperature}) must be above 0 with samples ({self.samples}): greedy answers are all equal"
            )
