"""Model shapes that several benchmarks share, each defined once.

Knows nothing about torch, timing or results.
"""

from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig


def tiny_vl_34m() -> ModelConfig:
    """A 34 M parameter member of the family with the width ratios of 28B-A3B.

    Text expert : vision expert : shared : dense = 1536 : 512 : 3072 : 12288 there and 192 : 64 : 384 : 1536 here.
    """
    return ModelConfig(
        hidden_size=256,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        mrope_section=(11, 11, 10),
        intermediate_size=1536,
        shared_ffn_size=384,
        expert_pools=(
            ExpertPoolConfig(modality="text", num_experts=16, ffn_size=192, num_active=2),
            ExpertPoolConfig(modality="vision", num_experts=16, ffn_size=64, num_active=2),
        ),
        vocab_size=8192,
        max_position_embeddings=8192,
        vision=VisionConfig(depth=4, hidden_size=192, num_heads=4, intermediate_size=768),
        tokens=SpecialTokens(
            end_of_turn=8185,
            image_patch=8186,
            image_start=8187,
            image_end=8188,
            video_start=8189,
            video_end=8190,
        ),
    )


def text_moe_2b() -> ModelConfig:
    """The text backbone's architecture with 1.5 GB of bf16 weights active for a token, 3.4 GB in all."""
    return ModelConfig(
        hidden_size=1536,
        num_layers=16,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        mrope_section=(22, 22, 20),
        intermediate_size=8192,
        shared_ffn_size=2048,
        expert_pools=(ExpertPoolConfig(modality="text", num_experts=16, ffn_size=1024, num_active=6),),
        vocab_size=32000,
        max_position_embeddings=8192,
    )
