"""A tiny family member with random weights, transformers' twin of it, and sequences of any mixture of parts.

Knows nothing about checkpoints beyond `load_model`, which brings the twin's weights over.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bench.peers import transformers_config
from ernie45.checkpoint import load_model
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ModelConfig, SpecialTokens, VisionConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions
from tests.small_model import pools, small_config

CONFIG = small_config(
    hidden_size=64,
    num_layers=4,
    intermediate_size=96,
    shared_ffn_size=96,
    expert_pools=pools(8, 3, text=48, vision=16),
    vocab_size=128,
    max_position_embeddings=1024,
    vision=VisionConfig(depth=3, hidden_size=32, num_heads=2, intermediate_size=64, patch_size=2),
    # The last id is transformers' own placeholder for video.
    tokens=SpecialTokens(end_of_turn=119, image_patch=120, image_start=121, image_end=122, video_start=123, video_end=124),
)
NUM_TEXT_IDS = 110

Part = int | tuple[int, int, int]
"""A number of text tokens, or a grid (frames, height, width) in patches."""


class Twins(NamedTuple):
    """The same weights in our model and in transformers'."""

    ours: ErnieModel
    theirs: Any
    config: ModelConfig


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill everything, norms and correction biases too: a parameter left at 0 or 1 hides a wrong mapping."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "correction_bias" in name:
                parameter.normal_(0, 0.05, generator=generator)
            else:
                scale = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.normal_(0, scale, generator=generator)


@pytest.fixture(scope="session")
def make_twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Twins]:
    """make_twins(tie_word_embeddings=False, ...) -> Twins; each variant is made once."""
    from transformers import Ernie4_5_VLMoeForConditionalGeneration

    made: dict[Any, Twins] = {}

    def make(**changes: Any) -> Twins:
        key = tuple(sorted(changes.items()))
        if key not in made:
            config = dataclasses.replace(CONFIG, **changes)
            theirs = Ernie4_5_VLMoeForConditionalGeneration._from_config(transformers_config(config)).eval()
            randomise(theirs, seed=7)
            folder: Path = tmp_path_factory.mktemp("theirs")
            theirs.save_pretrained(folder)
            ours = load_model(folder)
            made[key] = Twins(ours, theirs, config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def twins(make_twins: Callable[..., Twins]) -> Twins:
    """Tied head, shared experts."""
    return make_twins()


@pytest.fixture(scope="session")
def make_sequence() -> Callable[..., ModelInput]:
    """make_sequence([5, (1, 4, 6), 3], seed=1) -> ModelInput: text, a picture with its markers, text."""
    return _make_sequence


def _make_sequence(parts: Sequence[Part], seed: int = 0) -> ModelInput:
    rng = np.random.default_rng(seed)
    tokens, ids, media, patches = CONFIG.tokens, [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(3, NUM_TEXT_IDS, part).tolist()
            continue
        kind = "image" if part[0] == 1 else "video"
        start, end = (getattr(tokens, f"{kind}_{side}") for side in ("start", "end"))
        length = num_media_tokens(part)
        pixels = rng.integers(0, 256, (int(np.prod(part)), 12), dtype=np.uint8)
        content_hash = hashlib.sha256(pixels.tobytes() + repr(part).encode()).hexdigest()
        media.append(MediaItem(kind=kind, grid=part, offset=len(ids) + 1, length=length, content_hash=content_hash))
        ids += [start, *[tokens.image_patch] * length, end]
        patches.append(pixels)
    positions = rope_positions(len(ids), [MediaSpan(item.offset, item.grid) for item in media])
    token_ids = np.array(ids, np.int64)
    return ModelInput(
        token_ids=token_ids,
        is_vision=np.isin(token_ids, tokens.vision_ids),
        positions=positions.positions_SX,
        patches=np.concatenate(patches) if patches else np.zeros((0, 12), np.uint8),
        media=tuple(media),
        next_position=positions.next_position,
    )
