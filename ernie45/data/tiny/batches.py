"""Batches of the tiny model's stages. Each is a pure function of (seed, stage, step, shard), so a run can go on anywhere.

Knows nothing about models, losses or processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from ernie45.data.packing import Labelled, LanguageBatch, collate, fill
from ernie45.data.tiny.canvas import CELL
from ernie45.data.tiny.digits import DigitSet
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import Mixture
from ernie45.data.tiny.strips import Strip, StripWriter
from ernie45.model.batch import VisionBatch
from ernie45.processor import Processor
from ernie45.processor.image import patchify

NUM_DIGIT_CLASSES, NUM_PLACES = 11, 5
NO_DIGIT, NO_PLACE = 10, 0
_PATCH, _MERGE = 14, 2
_BODY = 0.6  # of a digit's sides, from its centre


@dataclass(frozen=True, kw_only=True)
class LanguageData:
    """What a language stage is made of.

    weights: skill -> share. thinking_share: of samples answered with thoughts. whole_text: labels on questions too.
    token_budget: tokens of one shard.
    """

    name: str
    seed: int
    weights: Mapping[str, float]
    thinking_share: float
    whole_text: bool
    token_budget: int


class LanguageBatches:
    """Packed conversations about pictures of the given digits."""

    def __init__(self, data: LanguageData, digits: DigitSet, processor: Processor) -> None:
        self._data = data
        self._mixture = Mixture(StripWriter(digits), data.weights)
        self._encoder = SampleEncoder(processor)

    def __call__(self, step: int, shard: int) -> LanguageBatch:
        data = self._data
        rng = Random(f"{data.seed}/{data.name}/{step}/{shard}")

        def draw(_index: int) -> Labelled:
            sample = self._mixture.draw(rng)
            return self._encoder.encode(sample, rng.random() < data.thinking_share, data.whole_text)

        return collate(fill(data.token_budget, draw), data.token_budget)


@dataclass(frozen=True, kw_only=True)
class DigitBatch:
    """Pictures of digits, and for each visual token the digit it shows (0 to 9, 10: none) and its place (1 to 4, 0: none)."""

    vision: VisionBatch
    digits_R: Tensor
    places_R: Tensor


class DigitBatches:
    """Strips of 1 to 4 of the given digits for the vision tower's own stage."""

    def __init__(self, seed: int, num_pictures: int, digits: DigitSet) -> None:
        self._seed = seed
        self._num_pictures = num_pictures
        self._writer = StripWriter(digits)

    def __call__(self, step: int, shard: int) -> DigitBatch:
        rng = Random(f"{self._seed}/digits/{step}/{shard}")
        strips = [self._writer.strip(rng, rng.choice((1, 2, 2, 3, 3, 4, 4))) for _ in range(self._num_pictures)]
        return digit_batch(strips)


def digit_batch(strips: list[Strip]) -> DigitBatch:
    """Patches and token labels of strips, pictures of one shape side by side."""
    strips = sorted(strips, key=lambda strip: strip.picture_HWC.shape)
    labels = [token_labels(strip) for strip in strips]
    vision = VisionBatch(
        patches_PC=torch.from_numpy(np.concatenate([patchify(strip.picture_HWC, _PATCH, _MERGE) for strip in strips])),
        grids=tuple((1, strip.picture_HWC.shape[0] // _PATCH, strip.picture_HWC.shape[1] // _PATCH) for strip in strips),
    )
    return DigitBatch(
        vision=vision,
        digits_R=torch.from_numpy(np.concatenate([digits for digits, _ in labels])),
        places_R=torch.from_numpy(np.concatenate([places for _, places in labels])),
    )


def token_labels(strip: Strip) -> tuple[np.ndarray, np.ndarray]:
    """The digit and the place of each visual token, row by row.

    A token shows the digit nearest to its centre, if that digit's body covers it; a digit between token centres is shown by the
    nearest. The body is taken as 0.7 of the side wide and 0.95 of it high, as written digits are, and a little more.
    """
    rows, columns = strip.picture_HWC.shape[0] // CELL, strip.picture_HWC.shape[1] // CELL
    y, x = (np.indices((rows, columns)).reshape(2, -1) + 0.5) * CELL
    distance_DR = np.array(
        [np.maximum(abs(x - digit.x) / (0.7 * digit.size), abs(y - digit.y) / (0.95 * digit.size)) for digit in strip.digits]
    )
    distance_DR[np.arange(len(strip.digits)), distance_DR.argmin(1)] = 0
    nearest_R, covered_R = distance_DR.argmin(0), distance_DR.min(0) < _BODY
    return np.where(covered_R, np.array(strip.labels)[nearest_R], NO_DIGIT), np.where(covered_R, nearest_R + 1, NO_PLACE)
