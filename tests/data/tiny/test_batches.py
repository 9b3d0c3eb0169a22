"""Batches are pure functions of seed, step and shard, and say the truth about their pictures."""

import itertools
from random import Random

import numpy as np
import pytest
import torch

from ernie45.config.errors import DataError
from ernie45.data.packing import IGNORED, collate, fill
from ernie45.data.tiny.batches import (
    NOTHING,
    SHOWN,
    LanguageBatches,
    LanguageData,
    SightBatches,
    token_labels,
)
from ernie45.data.tiny.canvas import Mark
from ernie45.data.tiny.charts import chart
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import makers
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor import Processor


def language_batches(processor: Processor, seed: int = 0) -> LanguageBatches:
    data = LanguageData(
        name="joint",
        seed=seed,
        weights={"read": 1.0, "sum2": 1.0, "arithmetic": 1.0},
        thinking_share=0.5,
        whole_text=False,
        token_budget=600,
    )
    return LanguageBatches(data, training_digits("fit"), processor)


def test_a_batch_is_a_pure_function_of_its_place(processor: Processor) -> None:
    batches, again = language_batches(processor), language_batches(processor)
    batches(3, 1)  # whatever was drawn before does not matter
    one, other = batches(5, 0), again(5, 0)
    assert torch.equal(one.packed.token_ids_T, other.packed.token_ids_T)
    assert one.packed.vision is not None
    assert other.packed.vision is not None
    assert torch.equal(one.packed.vision.patches_PC, other.packed.vision.patches_PC)
    for different in (batches(5, 1), batches(6, 0), language_batches(processor, seed=1)(5, 0)):
        assert not torch.equal(different.packed.token_ids_T, one.packed.token_ids_T)


def test_a_batch_keeps_its_budget_and_labels(processor: Processor) -> None:
    batch = language_batches(processor)(0, 0)
    assert 500 < len(batch.packed) <= 600
    ids = batch.packed.token_ids_T
    next_ids = torch.cat((ids[1:], ids[:1]))[batch.rows_R]
    ends = batch.labels_R == processor.tokens.eos
    assert torch.equal(batch.labels_R[~ends], next_ids[~ends])
    assert (next_ids[ends] == processor.tokens.end_of_turn).all()
    assert int(ends.sum()) == len(batch.packed.cu_seqlens) - 1


def test_packing_keeps_every_sequence_whole(processor: Processor) -> None:
    rng_samples = [maker(Random(index)) for index, maker in enumerate(makers(_writer()).values())]
    items = [SampleEncoder(processor).encode(sample, True) for sample in rng_samples]
    batch = collate(items, [1 + place for place in range(len(items))], 0.5)
    borders = batch.packed.cu_seqlens
    pieces = {tuple(batch.packed.token_ids_T[a:b].tolist()) for a, b in itertools.pairwise(borders)}
    assert pieces == {tuple(item.inputs.token_ids.tolist()) for item in items}
    num_labels = [int((item.labels_S != IGNORED).sum()) for item in items]
    assert len(batch.labels_R) == sum(num_labels)
    weights, counts = np.unique(batch.weights_R.numpy(), return_counts=True)
    assert dict(zip(weights.tolist(), counts.tolist(), strict=True)) == dict(enumerate(num_labels, 1)), "weights follow"


def test_a_budget_too_small_is_an_error(processor: Processor) -> None:
    item = SampleEncoder(processor).encode(makers(_writer())["sum4"](Random(0)), True)
    with pytest.raises(DataError, match="token_budget \\(10\\)"):
        fill(10, lambda index: item)


def test_token_labels_name_what_is_shown() -> None:
    """Two marks, the first over the upper left token, the second between two columns of the lower row."""
    marks = [Mark("7", 14.0, 14.0, 12, 12), Mark("red circle", 84.0, 42.0, 15, 15)]
    circle = SHOWN.index("red circle")
    expected = [7, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, circle, circle]
    assert token_labels((56, 112), marks).tolist() == expected


def test_every_token_of_a_strip_shows_its_digit() -> None:
    rng, writer = Random(0), _writer()
    for num_digits in (1, 2, 3, 4):
        strip = writer.strip(rng, num_digits)
        assert token_labels(strip.picture_HWC.shape[:2], strip.marks).tolist() == strip.labels


def test_the_vision_stage_shows_everything() -> None:
    batch = SightBatches(0, 60, training_digits("fit"))(0, 0)
    assert torch.equal(batch.shown_R, SightBatches(0, 60, training_digits("fit"))(0, 0).shown_R)
    assert len(batch.shown_R) == sum(grid[1] * grid[2] // 4 for grid in batch.vision.grids)
    shown = {SHOWN[index] for index in batch.shown_R.tolist()}
    assert shown > {*"0123456789", "nothing"}
    assert any(" " in name for name in shown), "a coloured shape"
    assert shown & {"A", "B", "C", "D"}, "a bar's label"


def test_a_bars_column_shows_its_value_and_its_label() -> None:
    made = chart(Random(1))
    columns = token_labels(made.picture_HWC.shape[:2], made.marks).reshape(-1, len(made.values))
    assert (columns[:-1] == np.array(made.values)).all()
    assert [SHOWN[label] for label in columns[-1]] == list(made.labels)


def _writer() -> StripWriter:
    return StripWriter(training_digits("fit"))
