"""Sequences for engine tests, laid out like the processor's but with random patches, and the smallest config that takes them.

Knows nothing about the processor or about trained weights.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.engine.request import Completion
from ernie45.model.batch import pack
from ernie45.model.cache import PagedKVCache
from ernie45.model.multimodal import ErnieModel
from tests.small_model import small_config

MakeInput = Callable[..., ModelInput]

Part = int | tuple[str, tuple[int, int, int], int]
"""A number of text tokens, or a picture: kind, grid (frames, height, width) in patches, seed of its pixels."""


NUM_TEXT_IDS = 90
CONFIG = small_config(num_layers=3, tie_word_embeddings=False)


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


NUM_NEW = 12
GREEDY = SamplingParams(max_tokens=NUM_NEW, temperature=0)
IMAGE = ("image", (1, 6, 8), 1)  # 12 tokens
SMALL_IMAGE = ("image", (1, 4, 2), 2)
VIDEO = ("video", (6, 4, 4), 3)  # 3 units of 4 tokens
PROMPTS = {
    "text": [13],
    "one token": [1],
    "image": [4, IMAGE, 5],
    "two images": [2, IMAGE, 3, SMALL_IMAGE, 1],
    "video": [3, VIDEO, 6],
    "mixed": [SMALL_IMAGE, 2, VIDEO, 3, IMAGE, 9],
}


@pytest.fixture(scope="session")
def model(config: ModelConfig) -> ErnieModel:
    model = ErnieModel(config)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():  # wider than at the start of a training, so that answers are varied and differ between prompts
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="session")
def prompts(make_input: MakeInput) -> dict[str, ModelInput]:
    return {name: make_input(parts, seed=seed) for seed, (name, parts) in enumerate(PROMPTS.items())}


@pytest.fixture(scope="session")
def recomputed(model: ErnieModel, prompts: dict[str, ModelInput]) -> dict[str, tuple[int, ...]]:
    """Greedy answers without any cache: the whole sequence through the model for every token."""
    return {name: recompute(model, inputs) for name, inputs in prompts.items()}


@torch.no_grad()
def recompute(model: ErnieModel, inputs: ModelInput) -> tuple[int, ...]:
    answer: list[int] = []
    for _ in range(NUM_NEW):
        logits_RV = model.logits(model(pack([extended(inputs, answer)])).hidden_TD[-1:])
        answer.append(int(logits_RV.argmax()))
    return tuple(answer)


def extended(inputs: ModelInput, token_ids: Sequence[int]) -> ModelInput:
    """The input followed by text tokens."""
    new = np.arange(inputs.next_position, inputs.next_position + len(token_ids))
    return replace(
        inputs,
        token_ids=np.concatenate([inputs.token_ids, np.array(token_ids, dtype=np.int64)]),
        is_vision=np.concatenate([inputs.is_vision, np.zeros(len(token_ids), dtype=bool)]),
        positions=np.concatenate([inputs.positions, np.repeat(new[:, None], 3, axis=1)]),
        next_position=inputs.next_position + len(token_ids),
    )


def make_llm(model: ErnieModel, **options) -> LLM:
    return LLM(model, EngineConfig(**{"page_size": 4, "num_pages": 128, **options}))


def answers(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def page_bytes(model: ErnieModel) -> int:
    return PagedKVCache.bytes_per_page(model.config, 4, model.dtype)
