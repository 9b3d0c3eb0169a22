"""Documents of the tiny samples: plain text, labels everywhere but on pictures, kinds of batches, and long ones."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.documents import TEXT_SKILLS, DocumentBatches, DocumentData
from ernie45.data.tiny.mixture import SOURCES, Mixture, makers
from ernie45.data.tiny.model import tiny_processor
from ernie45.data.tiny.strips import StripWriter

DATA = DocumentData(
    name="test",
    seed=0,
    weights={"read": 1, "caption": 1, "arithmetic": 1},
    thinking=0.5,
    shows=lambda step: None,
    blind=False,
    token_budget=400,
    context=0,
    token_balanced=True,
    num_shards=2,
)


def batches(**changes) -> DocumentBatches:
    return DocumentBatches(replace(DATA, **changes), training_digits("fit"), tiny_processor())


def documents(**changes) -> list[Labelled]:
    made = batches(**changes)
    rng = Random(0)
    shows = replace(DATA, **changes).shows(0)
    return [made._document(shows, rng) for _ in range(30)]


def text_of(item: Labelled) -> str:
    return tiny_processor().tokenizer.decode([int(token) for token in item.inputs.token_ids if token != 5])


def test_a_batch_is_a_function_of_step_and_shard() -> None:
    one, other = batches()(3, 1), batches()(3, 1)
    assert one.packed.token_ids_T.tolist() == other.packed.token_ids_T.tolist()
    assert batches()(3, 0).packed.token_ids_T.tolist() != one.packed.token_ids_T.tolist()
    assert one.weights_R.unique().tolist() == [pytest.approx(1 / 800)]
    mean = batches(token_balanced=False)(3, 1)
    assert float(mean.weights_R.sum()) == pytest.approx(0.5)


def test_plain_text_without_roles_all_of_it_labelled() -> None:
    for item in documents():
        text = text_of(item)
        assert "User:" not in text
        assert "think>" not in text
        ids, labels = item.inputs.token_ids, item.labels_S
        vision = item.inputs.is_vision
        assert (labels[:-1][~vision[1:]] == ids[1:][~vision[1:]]).all()
        assert (labels[:-1][vision[1:]] == IGNORED).all()
        assert labels[-1] == IGNORED
        assert ids[-1] == tiny_processor().tokens.eos


@pytest.mark.parametrize(("shows", "blind"), [(True, False), (False, False), (False, True)])
def test_kinds_of_batches(shows: bool, blind: bool) -> None:
    made = batches(shows=lambda step: shows, blind=blind)(0, 0)
    assert (made.packed.vision is not None) == shows
    assert made.shows_R is not None
    assert bool(made.shows_R.all()) == shows
    assert made.source_R is not None
    sources = {made.sources[number] for number in made.source_R.tolist()}
    assert (sources <= set(TEXT_SKILLS)) == (not shows and not blind)


def test_long_documents_ask_again_about_a_picture_by_its_number() -> None:
    items = documents(shows=lambda step: True, context=300, token_budget=400, weights={"read": 1})
    assert all(200 < len(item.inputs) <= 300 for item in items)
    assert {item.source for item in items} == {"long"}
    assert all(len(item.inputs.media) > 3 for item in items)
    again = [text_of(item) for item in items]
    assert any("Picture 1: " in text for text in again)
    assert np.mean([text.count("Picture") - len(item.inputs.media) for text, item in zip(again, items, strict=True)]) > 1


def test_sources_are_all_that_a_sample_can_be() -> None:
    writer = StripWriter(training_digits("fit"))
    mixture = Mixture(writer, dict.fromkeys(makers(writer), 1.0))
    rng = Random(0)
    found = {mixture.draw(rng).skill for _ in range(300)}
    assert found == set(SOURCES)
