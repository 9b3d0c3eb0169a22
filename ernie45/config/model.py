"""The model's shape: frozen dataclasses for the decoder, its expert pools, the vision tower and special tokens.

Knows nothing about torch, files or where the numbers come from (`presets`, `model_json`).
"""

from dataclasses import dataclass, field
from typing import Literal

from ernie45.config.errors import ConfigError

Modality = Literal["text", "vision"]
POOLS: tuple[Modality, ...] = ("text", "vision")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids the model itself depends on. `image_patch` stands for every visual token, of images and of videos."""

    bos: int = 1
    eos: int = 2
    pad: int = 0
    end_of_turn: int = 100272
    image_patch: int = 100295
    image_start: int = 101304
    image_end: int = 101305
    video_start: int = 101306
    video_end: int = 101307

    @property
    def vision_ids(self) -> tuple[int, ...]:
        """Ids that go to the vision experts: the placeholder and the four markers (spec: modality of a marker is vision)."""
        return (self.image_patch, self.image_start, self.image_end, self.video_start, self.video_end)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower and what the resampler needs to know of it."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 5120
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_merge_size: int = 2
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _positive(self, "depth", "hidden_size", "num_heads", "intermediate_size", "patch_size", "spatial_merge_size")
        if self.temporal_merge_size != 2:
            raise ConfigError(
                f"temporal_merge_size ({self.temporal_merge_size}) must be 2: the resampler joins frames in pairs; set it to 2"
            )
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision hidden_size ({self.hidden_size}) must be a multiple of 4 * num_heads ({self.num_heads}), "
                "so that each head splits into two rope axes of pairs; change one of them"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch (C): channels * patch_size ** 2."""
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class ExpertPoolConfig:
    """One pool of routed experts; its router sees only tokens of its modality."""

    modality: Modality
    num_experts: int
    ffn_size: int
    num_active: int

    def __post_init__(self) -> None:
        if self.modality not in POOLS:
            raise ConfigError(f"expert pool modality ({self.modality!r}) must be one of {POOLS}")
        _positive(self, "num_experts", "ffn_size", "num_active")
        if self.num_active > self.num_experts:
            raise ConfigError(
                f"num_active ({self.num_active}) must be at most num_experts ({self.num_experts}) in the {self.modality} pool"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One member of the ERNIE 4.5 family. No expert pools: dense. No vision: text only.

    `mrope_section` counts rotary pairs by axis in the order (height, width, time); the height and width pairs are the
    highest frequencies and alternate, the time pairs are the lowest. Text has equal positions on the three axes.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int = 103424
    head_dim: int = 128
    expert_pools: tuple[ExpertPoolConfig, ...] = ()
    shared_ffn_size: int = 0
    first_moe_layer: int = 1
    moe_layer_interval: int = 1
    norm_eps: float = 1e-5
    norm_min: float = 1e-12
    rope_theta: float = 500000.0
    mrope_section: tuple[int, int, int] = (22, 22, 20)
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    num_mtp_layers: int = 0
    vision: VisionConfig | None = None
    tokens: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be divisible by num_kv_heads ({self.num_kv_heads}); "
                f"use num_kv_heads in {[n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]}"
            )
        height, width, time = self.mrope_section
        if height != width or 2 * (height + width + time) != self.head_dim:
            raise ConfigError(
                f"mrope_section {self.mrope_section} must be (h, h, t) with 2 * (h + h + t) = head_dim ({self.head_dim})"
            )
        pools = [pool.modality for pool in self.expert_pools]
        if pools not in ([], ["text"], ["text", "vision"]):
            raise ConfigError(f"expert_pools {pools} must be none, text, or text then vision, each once")

    @property
    def is_multimodal(self) -> bool:
        return self.vision is not None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder block `layer` (from 0) has routed experts."""
        return bool(self.expert_pools) and layer >= self.first_moe_layer and (layer + 1) % self.moe_layer_interval == 0

    @property
    def num_moe_layers(self) -> int:
        return sum(self.is_moe_layer(layer) for layer in range(self.num_layers))

    def pool(self, modality: Modality) -> ExpertPoolConfig | None:
        """The pool of that modality, or None if the model has none."""
        return next((pool for pool in self.expert_pools if pool.modality == modality), None)


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} ({value!r}) must be a whole number of at least 1 in {type(config).__name__}")
