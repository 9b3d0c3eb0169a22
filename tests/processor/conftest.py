"""Fixtures: a small byte-level BPE tokenizer with ERNIE's control tokens at small ids, and a processor that uses it.

Knows nothing about the shipped tiny model.
"""

import copy
import json
from functools import cache
from typing import Any

import pytest
import tokenizers

from ernie45.config.model import SpecialTokens
from ernie45.config.processor import ProcessorConfig
from ernie45.processor import Processor
from ernie45.processor.tokenizer import Tokenizer

CONTROL_TOKENS = [
    *("<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>"),
    *("<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_START|>", "<|VIDEO_END|>"),
    *("<think>", "</think>"),
]
TOKENS = SpecialTokens(
    pad=0, bos=1, eos=2, end_of_turn=4, image_patch=5, image_start=6, image_end=7, video_start=8, video_end=9
)
_CORPUS = [
    "User: What do you see in the picture? Assistant: I see the digits 1 2 3 4 5 6 7 8 9 0.",
    "Picture 1: Video 1: the sum of 3 and 4 is 7; 12 + 30 = 42. red green blue left right above below",
]


@cache
def build_tokenizer_data() -> dict[str, Any]:
    """The content of the tokenizer.json."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="session")
def shared_tokenizer_data() -> dict[str, Any]:
    """Not to be changed."""
    return build_tokenizer_data()


@pytest.fixture
def tokenizer_data() -> dict[str, Any]:
    return copy.deepcopy(build_tokenizer_data())


@pytest.fixture
def tokens() -> SpecialTokens:
    return TOKENS


@pytest.fixture
def config() -> ProcessorConfig:
    """Limits of a tiny model: images of 1 to 24 tokens, frames of 1 to 6."""
    square = 28 * 28
    return ProcessorConfig(
        image_min_pixels=square, image_max_pixels=24 * square, video_min_pixels=square, video_max_pixels=6 * square
    )


@pytest.fixture
def processor(tokenizer_data: dict[str, Any], config: ProcessorConfig) -> Processor:
    return Processor(Tokenizer(tokenizer_data), tokens=TOKENS, config=config)


@pytest.fixture(scope="session")
def shared_processor(shared_tokenizer_data: dict[str, Any]) -> Processor:
    """For property tests; not to be changed."""
    return Processor(Tokenizer(shared_tokenizer_data), tokens=TOKENS)
