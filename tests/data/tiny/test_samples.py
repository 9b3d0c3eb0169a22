"""What the samples say is true, and both ways of encoding them agree."""

import re
from random import Random

import numpy as np
import pytest

from ernie45.config.errors import DataError
from ernie45.data.packing import IGNORED
from ernie45.data.tiny import charts, scenes
from ernie45.data.tiny.canvas import CELL, digit_mask
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import SCORED_SKILLS, Mixture, makers
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor import Processor

MAKERS = makers(StripWriter(training_digits("fit")))


@pytest.mark.parametrize("skill", MAKERS)
@pytest.mark.parametrize("thinking", [True, False], ids=["thinking", "direct"])
def test_fast_encoding_equals_the_processors(processor: Processor, skill: str, thinking: bool) -> None:
    encoder, rng = SampleEncoder(processor), Random(skill)
    for _ in range(12):
        sample = MAKERS[skill](rng)
        fast, slow = encoder.encode(sample, thinking).inputs, encoder.encode_slowly(sample, thinking)
        for name in ("token_ids", "is_vision", "positions", "patches", "next_position"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=f"{name} of {sample.turn}")
        assert [(m.grid, m.offset, m.length) for m in fast.media] == [(m.grid, m.offset, m.length) for m in slow.media]


@pytest.mark.parametrize("skill", MAKERS)
@pytest.mark.parametrize("thinking", [True, False], ids=["thinking", "direct"])
def test_labels_are_the_answer_after_the_prompt(processor: Processor, skill: str, thinking: bool) -> None:
    rng = Random(skill)
    sample = MAKERS[skill](rng)
    item = SampleEncoder(processor).encode(sample, thinking)
    prompt = processor.encode_chat(sample.prompt_messages(), enable_thinking=thinking)
    np.testing.assert_array_equal(item.inputs.token_ids[: len(prompt)], prompt.token_ids)
    assert (item.labels_S[: len(prompt) - 1] == IGNORED).all()
    labels = item.labels_S[len(prompt) - 1 : -1]
    text = processor.tokenizer.decode(labels, skip_special_tokens=False)
    thoughts = f"\n{sample.turn.reasoning}\n</think>\n\n" if thinking else ""
    assert text == f"{thoughts}{sample.turn.answer}</s>"
    assert item.labels_S[-1] == IGNORED


def test_whole_text_labels_all_but_pictures(processor: Processor) -> None:
    item = SampleEncoder(processor).encode(MAKERS["read"](Random(1)), True, whole_text=True)
    ids, is_vision = item.inputs.token_ids, item.inputs.is_vision
    expected = np.append(np.where(is_vision[1:], IGNORED, ids[1:]), IGNORED)
    expected[-2] = processor.tokens.eos
    np.testing.assert_array_equal(item.labels_S, expected)


def test_every_equation_in_a_thought_holds() -> None:
    rng = Random(7)
    for make in MAKERS.values():
        for _ in range(40):
            reasoning = make(rng).turn.reasoning
            for left, right in re.findall(r"^([\d+-]+)=(\d+)$", reasoning, re.MULTILINE):
                assert sum(int(term) for term in re.findall(r"[+-]?\d+", left)) == int(right), reasoning


def test_answers_follow_from_the_digits() -> None:
    writer, rng = StripWriter(training_digits("fit")), Random(3)
    for num_digits in (2, 3, 4):
        for apart in (True, False):
            sample = writer.sum(rng, num_digits, apart=apart)
            digits = sample.turn.reasoning.split("\n")[0].split(",")
            assert len(digits) == num_digits
            assert sample.turn.answer == str(sum(map(int, digits)))
            assert len(sample.pictures) == (num_digits if apart else 1)
    for _ in range(5):
        turn = writer.read(rng).turn
        assert turn.answer == turn.reasoning.replace(",", "")


def test_charts_and_scenes_show_what_they_list() -> None:
    rng = Random(5)
    for _ in range(20):
        chart = charts.chart(rng)
        height, width = chart.picture_HWC.shape[:2]
        unit = 9 if height == 112 else 7
        for place, value in enumerate(chart.values):
            column = chart.picture_HWC[: height - 17, place * CELL + CELL // 2].astype(int)
            paper = np.median(chart.picture_HWC[:8].astype(int), axis=(0, 1))
            coloured = (abs(column - paper).max(-1) > 60).sum()
            assert abs(coloured - value * unit) <= 3, (chart.listing, value, coloured)
        assert width == CELL * len(chart.values)
        scene = scenes.scene(rng)
        for thing in scene.things:
            shown = scene.picture_HWC[int(thing.y), int(thing.x)].astype(int)
            assert abs(shown - np.array(scenes.COLOURS[thing.colour])).max() <= 14, thing
        places = [(thing.y, thing.x) for thing in scene.things]
        assert len(set(places)) == len(places)


def test_pictures_fit_the_processor(processor: Processor) -> None:
    """No picture is resized on its way in."""
    from PIL import Image

    from ernie45.processor.image import resize

    rng = Random(2)
    for make in MAKERS.values():
        for picture in make(rng).pictures:
            height, width = picture.shape[:2]
            assert height % CELL == width % CELL == 0
            assert resize(Image.fromarray(picture), processor.config).size == (width, height)


def test_equal_generators_give_equal_samples_and_weights_are_shares() -> None:
    mixture = Mixture(StripWriter(training_digits("fit")), {"read": 3.0, "arithmetic": 1.0})
    first, second = ([mixture.draw(rng) for _ in range(200)] for rng in (Random(4), Random(4)))
    assert [sample.turn for sample in first] == [sample.turn for sample in second]
    for one, other in zip(first, second, strict=True):
        assert all((a == b).all() for a, b in zip(one.pictures, other.pictures, strict=True))
    assert 120 < sum(sample.skill == "read" for sample in first) < 180
    with pytest.raises(DataError, match="skill \\('reed'\\)"):
        Mixture(StripWriter(training_digits("fit")), {"reed": 1.0})
    assert set(SCORED_SKILLS) <= set(MAKERS)


def test_undistorted_digits_are_the_digits() -> None:
    digits = training_digits("fit")
    mask = digit_mask(Random(0), digits.images_NHW[0], 48, distort=False)
    again = digit_mask(Random(1), digits.images_NHW[0], 48, distort=False)
    np.testing.assert_array_equal(mask, again)
    assert np.corrcoef(_shrunk(mask).ravel(), digits.images_NHW[0].ravel())[0, 1] > 0.9


def _shrunk(mask: np.ndarray) -> np.ndarray:
    from PIL import Image

    inner = Image.fromarray(mask).resize((10, 10), Image.Resampling.BOX)
    return np.asarray(inner)[1:9, 1:9].astype(float)
