"""The smallest model that has every part, which the tests of all folders start from.

Knows nothing about weights or tokenizers.
"""

from dataclasses import replace
from typing import Any

from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig

_SMALL = ModelConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mrope_section=(3, 3, 2),
    intermediate_size=48,
    shared_ffn_size=24,
    expert_pools=(
        ExpertPoolConfig(modality="text", num_experts=4, ffn_size=24, num_active=2),
        ExpertPoolConfig(modality="vision", num_experts=4, ffn_size=16, num_active=2),
    ),
    vocab_size=96,
    max_position_embeddings=512,
    vision=VisionConfig(depth=2, hidden_size=16, num_heads=2, intermediate_size=32, patch_size=2),
    tokens=SpecialTokens(end_of_turn=90, image_patch=91, image_start=92, image_end=93, video_start=94, video_end=95),
)


def small_config(**changes: Any) -> ModelConfig:
    """Two layers, four experts of two sizes, a two-block tower of 2 x 2 patches, 96 ids; and what a test wants otherwise."""
    return replace(_SMALL, **changes)


def pools(num_experts: int = 4, num_active: int = 2, **ffn_sizes: int) -> tuple[ExpertPoolConfig, ...]:
    """A pool of experts for each modality, of this width."""
    return tuple(
        ExpertPoolConfig(modality=name, num_experts=num_experts, ffn_size=size, num_active=num_active)  # type: ignore[arg-type]
        for name, size in ffn_sizes.items()
    )
