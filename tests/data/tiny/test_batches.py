"""Batches are pure functions of seed, step and shard, and say the truth about their pictures."""

import itertools
from random import Random

import numpy as np
import pytest
import torch

from ernie45.config.errors import DataError
from ernie45.data.packing import IGNORED, collate, fill
from ernie45.data.tiny.batches import (
    NO_PLACE,
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
    assert 500 < len(batch.packed) <= 600 == batch.token_budget
    ids = batch.packed.token_ids_T
    next_ids = torch.cat((ids[1:], ids[:1]))[batch.rows_R]
    ends = batch.labels_R == processor.tokens.eos
    assert torch.equal(batch.labels_R[~ends], next_ids[~ends])
    assert (next_ids[ends] == processor.tokens.end_of_turn).all()
    assert int(ends.sum()) == len(batch.packed.cu_seqlens) - 1


def test_packing_keeps_every_sequence_whole(processor: Processor) -> None:
    rng_samples = [maker(Random(index)) for index, maker in enumerate(makers(_writer()).values())]
    items = [SampleEncoder(processor).encode(sample, True) for sample in rng_samples]
    batch = collate(items, 5000)
    borders = batch.packed.cu_seqlens
    pieces = {tuple(batch.packed.token_ids_T[a:b].tolist()) for a, b in itertools.pairwise(borders)}
    assert pieces == {tuple(item.inputs.token_ids.tolist()) for item in items}
    assert len(batch.labels_R) == sum((item.labels_S != IGNORED).sum() for item in items)


def test_a_budget_too_small_is_an_error(processor: Processor) -> None:
    item = SampleEncoder(processor).encode(makers(_writer())["sum4"](Random(0)), True)
    with pytest.raises(DataError, match="token_budget \\(10\\)"):
        fill(10, lambda index: item)


def test_token_labels_name_what_is_shown_and_its_place() -> None:
    """Two marks, the first over the upper left token, the second between two columns of the lower row."""
    marks = [Mark("7", 1, 14.0, 14.0, 12, 12), Mark("red circle", 2, 84.0, 42.0, 15, 15)]
    shown, places = token_labels((56, 112), marks)
    circle = SHOWN.index("red circle")
    assert shown.tolist() == [7, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, circle, circle]
    assert places.tolist() == [1, NO_PLACE, NO_PLACE, NO_PLACE, NO_PLACE, NO_PLACE, 2, 2]


def test_everything_in_a_picture_is_labelled_in_order() -> None:
    batch = SightBatches(0, 40, training_digits("fit"))(0, 0)
    again = SightBatches(0, 40, training_digits("fit"))(0, 0)
    assert torch.equal(batch.shown_R, again.shown_R)
    sizes = [grid[1] * grid[2] // 4 for grid in batch.vision.grids]
    for shown, places in zip(batch.shown_R.split(sizes), batch.places_R.split(sizes), strict=True):
        present = sorted(set(places[places != NO_PLACE].tolist()))
        assert present == list(range(1, len(present) + 1))
        assert ((shown == NOTHING) == (places == NO_PLACE)).all()
    assert set(batch.shown_R.tolist()) > {0, 5, 9, NOTHING}
    assert batch.shown_R.max() > NOTHING


def test_a_bars_column_shows_its_value_and_its_label() -> None:
    made = chart(Random(1))
    shown, places = token_labels(made.picture_HWC.shape[:2], made.marks)
    columns = shown.reshape(-1, len(made.values))
    assert (columns[:-1] == np.array(made.values)).all()
    assert [SHOWN[label] for label in columns[-1]] == list(made.labels)
    assert (places.reshape(columns.shape) == np.arange(1, len(made.values) + 1)).all()


def _writer() -> StripWriter:
    return StripWriter(training_digits("fit"))
