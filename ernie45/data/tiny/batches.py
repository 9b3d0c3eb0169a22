"""Batches of the tiny model's stages. Each is a pure function of (seed, stage, step, shard), so a run can go on anywhere.

Knows nothing about models, losses or processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from ernie45.data.packing import Labelled, LanguageBatch, collate, fill, token_balanced_weights
from ernie45.data.tiny.canvas import CELL, Mark
from ernie45.data.tiny.charts import LETTERS, Chart, chart
from ernie45.data.tiny.digits import DigitSet
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import SOURCES, Mixture
from ernie45.data.tiny.scenes import THING_NAMES, Scene, scene
from ernie45.data.tiny.strips import Strip, StripWriter
from ernie45.model.batch import VisionBatch
from ernie45.processor import Processor
from ernie45.processor.image import patchify

SHOWN = (*"0123456789", "nothing", *THING_NAMES, *LETTERS)
"""What a visual token can show: a written digit or a bar's value, nothing, a coloured shape, or a bar's label."""
NOTHING = SHOWN.index("nothing")
_PATCH, _MERGE = 14, 2

Picture = Strip | Scene | Chart


@dataclass(frozen=True, kw_only=True)
class LanguageData:
    """What a language stage is made of.

    weights: skill -> share. thinking_share: of samples answered with thoughts. whole_text: labels on questions too.
    token_budget: tokens of one shard. num_shards: of a step.
    """

    name: str
    seed: int
    weights: Mapping[str, float]
    thinking_share: float
    whole_text: bool
    token_budget: int
    num_shards: int = 1


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
            item = self._encoder.encode(sample, rng.random() < data.thinking_share, data.whole_text)
            return item._replace(source=sample.skill)

        items = fill(data.token_budget, draw)
        weights = token_balanced_weights(items, data.token_budget * data.num_shards)
        return collate(items, weights, 1 / data.num_shards, SOURCES)


@dataclass(frozen=True, kw_only=True)
class SightBatch:
    """Pictures, and for each visual token what it shows: an index into `SHOWN`. share: of the step, as in `LanguageBatch`."""

    vision: VisionBatch
    shown_R: Tensor
    share: float = 1.0


class SightBatches:
    """Strips of 1 to 4 of the given digits, scenes and bar charts for the vision tower's own stage."""

    def __init__(self, seed: int, num_pictures: int, digits: DigitSet, num_shards: int = 1) -> None:
        self._seed = seed
        self._num_shards = num_shards
        self._num_pictures = num_pictures
        self._writer = StripWriter(digits)

    def __call__(self, step: int, shard: int) -> SightBatch:
        rng = Random(f"{self._seed}/sight/{step}/{shard}")
        return sight_batch([self._picture(rng) for _ in range(self._num_pictures)], 1 / self._num_shards)

    def _picture(self, rng: Random) -> Picture:
        kind = rng.random()
        if kind < 0.15:
            return scene(rng)
        if kind < 0.25:
            return chart(rng)
        return self._writer.strip(rng, rng.choice((1, 2, 2, 3, 3, 4, 4)))


def sight_batch(pictures: list[Picture], share: float = 1.0) -> SightBatch:
    """Patches and token labels, pictures of one shape side by side."""
    pictures = sorted(pictures, key=lambda picture: picture.picture_HWC.shape)
    shapes = [picture.picture_HWC.shape for picture in pictures]
    labels = [token_labels(shape[:2], picture.marks) for shape, picture in zip(shapes, pictures, strict=True)]
    patches = [patchify(picture.picture_HWC, _PATCH, _MERGE) for picture in pictures]
    vision = VisionBatch(
        patches_PC=torch.from_numpy(np.concatenate(patches)),
        grids=tuple((1, height // _PATCH, width // _PATCH) for height, width, _ in shapes),
    )
    return SightBatch(
        vision=vision,
        shown_R=torch.from_numpy(np.concatenate(labels)),
        share=share,
    )


def token_labels(size: tuple[int, ...], marks: list[Mark]) -> np.ndarray:
    """What each visual token of a picture of this height and width shows, row by row.

    A token shows the mark nearest to its centre, if that mark's body covers the centre; a mark between token centres is shown
    by the nearest token.
    """
    y, x = (np.indices((size[0] // CELL, size[1] // CELL)).reshape(2, -1) + 0.5) * CELL
    distance_MR = np.array(
        [np.maximum(abs(x - mark.x) / mark.half_width, abs(y - mark.y) / mark.half_height) for mark in marks]
    )
    distance_MR[np.arange(len(marks)), distance_MR.argmin(1)] = 0
    nearest_R, covered_R = distance_MR.argmin(0), distance_MR.min(0) < 1
    names = np.array([SHOWN.index(mark.name) for mark in marks])
    return np.where(covered_R, names[nearest_R], NOTHING)
