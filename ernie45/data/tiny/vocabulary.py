"""The tiny model's tokenizer: a byte-level BPE trained on the text of the generated samples.

Knows nothing about pictures. Every newline and every digit is a token of its own: so a prompt's tokens are always the first
tokens of the conversation that continues it, and numbers are read digit by digit.
"""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ernie45.config.model import SpecialTokens
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.mixture import makers
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor.tokenizer import Tokenizer

VOCAB_SIZE = 512
SPECIAL_NAMES = (
    "<unk>",
    "<s>",
    "</s>",
    "<|begin_of_sentence|>",
    "<|end_of_sentence|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|VIDEO_START|>",
    "<|VIDEO_END|>",
    "<think>",
    "</think>",
)
_TAGS = ("<think>", "</think>")


def tiny_special_tokens() -> SpecialTokens:
    """The ids that the model and the processor depend on: places in `SPECIAL_NAMES`."""
    place = SPECIAL_NAMES.index
    return SpecialTokens(
        pad=place("<unk>"),
        bos=place("<s>"),
        eos=place("</s>"),
        end_of_turn=place("<|end_of_sentence|>"),
        image_patch=place("<|IMAGE_PLACEHOLDER|>"),
        image_start=place("<|IMAGE_START|>"),
        image_end=place("<|IMAGE_END|>"),
        video_start=place("<|VIDEO_START|>"),
        video_end=place("<|VIDEO_END|>"),
    )


def train_tokenizer(seed: int = 0, num_samples: int = 2000, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train the BPE on the text of `num_samples` samples of every kind. Equal seeds give equal tokenizers."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_NAMES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(_texts(seed, num_samples), trainer)
    return Tokenizer(_with_tags_visible(json.loads(bpe.to_str())))


def _texts(seed: int, num_samples: int) -> Iterator[str]:
    rng = Random(seed)
    kinds = list(makers(StripWriter(training_digits())).values())
    for number in range(num_samples):
        sample = kinds[number % len(kinds)](rng)
        turn = sample.turn
        yield f"User: Picture 1:{turn.question}\nAssistant: "
        yield f"Video 1:{turn.question}"
        yield f"\n{turn.reasoning}\n"
        yield f"\n\n{turn.answer}"


def _with_tags_visible(data: dict[str, Any]) -> dict[str, Any]:
    """The thinking tags are added tokens but not special: they are part of an answer's text."""
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in _TAGS
    return data
