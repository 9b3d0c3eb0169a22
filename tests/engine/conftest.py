"""Sequences for engine tests, laid out like the processor's but with random patches, and the smallest config that takes them.

Knows nothing about the processor or about trained weights.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig

Part = int | tuple[str, tuple[int, int, int], int]
"""A number of text tokens, or a picture: kind, grid (frames, height, width) in patches, seed of its pixels."""


NUM_TEXT_IDS = 90
CONFIG = ModelConfig(
    hidden_size=32,
    num_layers=3,
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
    tie_word_embeddings=False,
    vision=VisionConfig(depth=2, hidden_size=16, num_heads=2, intermediate_size=32, patch_size=2),
    tokens=SpecialTokens(end_of_turn=90, image_patch=91, image_start=92, image_end=93, video_start=94, video_end=95),
)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Three layers, two pools, a two-block tower, 96 ids of which 3 to 89 are text."""
    return CONFIG


@pytest.fixture(scope="session")
def make_input() -> Callable[..., ModelInput]:
    return _make_input


def _make_input(parts: Sequence[Part], *, seed: int = 0) -> ModelInput:
    """Text runs have random ids; a picture comes with its start and end markers."""
    tokens, patch_dim = CONFIG.tokens, 12
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    is_vision: list[bool] = []
    positions: list[tuple[int, int, int]] = []
    patches: list[np.ndarray] = []
    media: list[MediaItem] = []
    current = 0

    def put(token_id: int, vision: bool) -> None:
        nonlocal current
        ids.append(token_id)
        is_vision.append(vision)
        positions.append((current, current, current))
        current += 1

    for part in parts:
        if isinstance(part, int):
            for token_id in rng.integers(3, NUM_TEXT_IDS, part):
                put(int(token_id), False)
            continue
        kind, grid, pixel_seed = part
        frames, height, width = max(grid[0] // 2, 1), grid[1] // 2, grid[2] // 2
        pixels = np.random.default_rng(pixel_seed).integers(0, 256, (int(np.prod(grid)), patch_dim), dtype=np.uint8)
        put(tokens.image_start if kind == "image" else tokens.video_start, True)
        length = frames * height * width
        content_hash = hashlib.sha256(pixels.tobytes() + repr(grid).encode()).hexdigest()
        media.append(MediaItem(kind=kind, grid=grid, offset=len(ids), length=length, content_hash=content_hash))
        ids += [tokens.image_patch] * length
        is_vision += [True] * length
        positions += [
            (current + t, current + y, current + x) for t in range(frames) for y in range(height) for x in range(width)
        ]
        current += max(frames, height, width)
        patches.append(pixels)
        put(tokens.image_end if kind == "image" else tokens.video_end, True)
    return ModelInput(
        token_ids=np.array(ids, dtype=np.int64),
        is_vision=np.array(is_vision, dtype=bool),
        positions=np.array(positions, dtype=np.int64).reshape(-1, 3),
        patches=np.concatenate(patches) if patches else np.zeros((0, patch_dim), dtype=np.uint8),
        media=tuple(media),
        next_position=current,
    )
