"""Settings of low-rank adapters in training.

Knows nothing about torch or models.
"""

import re
from dataclasses import dataclass

from ernie45.config.errors import ConfigError

GROUPS = {
    "decoder": r"^layers\.",
    "attention": r"^layers\.\d+\.self_attn\.",
    "mlp": r"^layers\.\d+\.mlp\.(shared\.)?\w+_proj$",
    "experts": r"\.pools\.",
    "text_experts": r"\.pools\.text\.",
    "vision_experts": r"\.pools\.vision\.",
    "tower": r"^vision_model\.",
    "resampler": r"^resampler_model\.",
    "all": r"^(layers|vision_model|resampler_model)\.",
}
"""Names for patterns over the model's projections; "mlp" is dense layers and shared experts."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA) in place of the whole model: y = W x + scale * B (A x), W at rest.

    rank: of A and B; 0: no adapter, the whole model is trained. alpha: scale = alpha / rank, or alpha / sqrt(rank) with rslora
    (Kalajdzievski, 2023). dropout: share of A's inputs. targets, exclude: names of `GROUPS` or regular expressions over the
    names of projections ("layers.0.self_attn.q_proj", "layers.1.mlp.pools.vision.gate_up"); routers, embeddings and head
    have none. For a faster B (LoRA+: Hayou et al., 2024) there is `optim.lr_ratios`.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("decoder",)
    exclude: tuple[str, ...] = ()
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank ({self.rank}) must be at least 0; 0 trains the whole model")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha ({self.alpha}) must be above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout ({self.dropout}) must be at least 0 and below 1")
        if self.rank and not self.targets:
            raise ConfigError(f"lora.targets must name at least one of {', '.join(GROUPS)}, or a regular expression")
        for field in ("targets", "exclude"):
            for pattern in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"lora.{field} ({pattern!r}) must be a regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def choose(self, names: list[str]) -> list[str]:
        """Those of the names that `targets` ask for and `exclude` does not. ConfigError for a pattern without any."""
        for field in ("targets", "exclude"):
            for pattern in getattr(self, field):
                if not _matching(pattern, names):
                    raise ConfigError(
                        f"lora.{field} ({pattern!r}) matches no projection of this model; use {', '.join(GROUPS)}, or a "
                        f"regular expression over names like {names[0]}"
                    )
        dropped = {name for pattern in self.exclude for name in _matching(pattern, names)}
        wanted = {name for pattern in self.targets for name in _matching(pattern, names)} - dropped
        if not wanted:
            raise ConfigError(f"lora.exclude ({', '.join(self.exclude)}) must leave some of lora.targets; shorten it")
        return [name for name in names if name in wanted]


def _matching(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if re.search(GROUPS.get(pattern, pattern), name)]
