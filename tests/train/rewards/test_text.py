"""Judges of texts, numbers, tables and forms: what counts as right."""

import random

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.rewards import parse_spec
from ernie45.data.answers import Graded, Score
from ernie45.train.rewards.quantities import Quantity, entries, quantities
from ernie45.train.rewards.registry import build
from ernie45.train.rewards.text import edit_distance, last_boxed


def score(spec: str, answer: str, reference: str | None = None, **fields: object) -> Score:
    reward = build(parse_spec(spec))
    [found] = reward.judge([Graded(answer=answer, reference=reference, **fields)])  # type: ignore[arg-type]
    return found


def value(spec: str, answer: str, reference: str | None = None, **fields: object) -> float | None:
    return score(spec, answer, reference, **fields).value


@pytest.mark.parametrize(
    ("spec", "answer", "reference", "right"),
    [
        ("exact", " 42\n", "42", 1),
        ("exact", "42.", "42", 0),
        ("exact(punctuation=false)", "42.", "42", 1),
        ("exact", "The Sun", "the sun", 0),
        ("exact(case=false)", "The Sun", "the sun", 1),
        ("exact", "a  b", "a b", 0),
        ("exact(spaces=false)", "a \n b", "a b", 1),
        ("exact(unicode=false)", "１２", "12", 1),
        ("choice", "B", "b", 1),
        ("choice", "(b)", "B", 1),
        ("choice", "The answer is (C).", "C", 1),
        ("choice", "answer: **D**", "D", 1),
        ("choice", "B. because A is too small", "B", 1),
        ("choice", r"so \boxed{\text{A}}", "A", 1),
        ("choice", "A or B", "A", 0),
        ("choice", "I think it is C", "C", 0),  # I is an option's letter too: it names two
        ("choice(letters=ABCD)", "I think it is C", "C", 1),
        ("choice(letters=ABCD)", "Apples", "A", 0),
        ("choice", "", "A", 0),
        ("numeric", "so x = 1,234.50 in all", "1234.5", 1),
        ("numeric", "first 3 then 4", "3", 0),
        ("numeric(take=first)", "first 3 then 4", "3", 1),
        ("numeric(take=only)", "3 or 4", "4", 0),
        ("numeric", r"\boxed{7}, not 8", "7", 1),
        ("numeric", "1 1/2", "1.5", 1),
        ("numeric", r"$-\frac{3}{4}$", "-0.75", 1),
        ("numeric", "2.5 km", "2500 m", 1),
        ("numeric", "2.5 kg", "2.5 m", 0),
        ("numeric", "2.5", "2.5 m", 1),
        ("numeric", "half is 50%", "0.5", 1),
        ("numeric", "50", "50%", 1),
        ("numeric", "3 × 10^5", "300000", 1),
        ("numeric", "1e-3", "0.001", 1),
        ("numeric", "3.14", "3.14159", 0),
        ("numeric(tolerance=0.01)", "3.14", "3.14159", 1),
        ("numeric(absolute=0.5)", "10.4", "10", 1),
        ("numeric", "no idea", "10", 0),
        ("numeric", "−5", "-5", 1),
        ("numeric", "on 2020-01-05 it was 5", "5", 1),
        ("relaxed", "104", "100", 1),
        ("relaxed", "106", "100", 0),
        ("relaxed", "$ 1,040", "1000", 1),
        ("relaxed", "about 100", "100", 0),
        ("relaxed", "Blue", "blue", 1),
        ("relaxed", "2 dogs", "2 dogs", 1),
    ],
)
def test_right_and_wrong(spec: str, answer: str, reference: str, right: int) -> None:
    assert value(spec, answer, reference) == right


def test_one_of_several_references_is_enough() -> None:
    assert value("exact", "b", "a", extra={"answers": ["b", "c"]}) == 1
    assert value("anls", "colour", None, extra={"answers": ["color", "x"]}) == pytest.approx(5 / 6)
    assert score("exact", "b").event == "no_reference"
    assert score("exact", "b", extra={"answers": "b"}).event == "bad_reference"
    assert score("numeric", "3", "many").event == "bad_reference"


def test_a_choice_may_be_named_by_its_text() -> None:
    choices = {"choices": ["red", "dark blue"]}
    assert value("choice", "Dark  blue.", "B", extra=choices) == 1
    assert value("choice", "B", "dark blue", extra=choices) == 1
    assert score("choice", "B", "green", extra=choices).event == "bad_reference"


def test_numbers_are_read_as_they_are_written() -> None:
    text = "1,234.5 and -3, 2/3, 45%, 7 km/h, v2, 1.5e3, 5 apples"
    expected = [1234.5, -3, 2 / 3, 45, 7, 1500, 5]
    assert [one.value for one in quantities(text)] == pytest.approx(expected)
    assert quantities("45%")[0].percent
    assert quantities("7 km/h") == [Quantity(7.0, unit="km/h")]
    assert quantities("1/0 of 9e999") == []


def slow_distance(one: str, other: str) -> int:
    """The table, cell by cell."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row = row, [number]
        for place, against in enumerate(other, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (letter != against)))
    return row[-1]


def test_the_edit_distance_is_that_of_the_table() -> None:
    rng = random.Random(0)
    for _ in range(300):
        one, other = ("".join(rng.choices("abc语", k=rng.randrange(9))) for _ in range(2))
        assert edit_distance(one, other) == slow_distance(one, other)
    assert value("edit", "kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert value("edit", "", "") == 1
    assert value("anls", "xyzt", "abcd") == 0
    assert value("edit(case=false)", "ABC", "abc") == 1


MARKDOWN = "| year | apples | pears |\n|---|---:|---|\n| 2020 | 10 | 20 |\n| 2021 | 11 | 22 |"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (MARKDOWN, 1),
        ('{"2020": {"apples": 10.2, "Pears": 20}, "2021": {"apples": 11, "pears": 22}}', 1),
        ('```json\n[{"year": 2020, "apples": 10, "pears": 20}, {"year": 2021, "apples": 11, "pears": 22}]\n```', 1),
        (MARKDOWN.replace("22", "30"), 0.75),
        (MARKDOWN.rsplit("\n", 1)[0], 2 * 2 / 6),
        ("no table", 0),
        ("{broken", 0),
    ],
)
def test_tables_are_matched_entry_by_entry(answer: str, expected: float) -> None:
    assert value("table", answer, MARKDOWN) == pytest.approx(expected)


def test_lists_of_keys_and_values_are_tables_too() -> None:
    assert entries("- Name: Ann\n- Age: 7") == entries("name | Ann\nage | 7") == {"name": "Ann", "age": "7"}
    assert score("table", "x", "no entries").event == "bad_reference"


@pytest.mark.parametrize(
    ("text", "thinking", "right"),
    [
        ("a thought</think>\n\n7", True, 1),
        ("7", False, 1),
        ("never ends", True, 0),
        ("one</think>two</think>7", True, 0),
        ("one</think>", True, 0),
        ("</think>7", False, 0),
        ("<think>x</think>7", True, 0),
        ("one</think><response>7</response>", True, 1),
        ("one</think>a<response>7</response>", True, 0),
    ],
)
def test_the_form_is_one_thought_and_an_answer(text: str, thinking: bool, right: int) -> None:
    [found] = build(parse_spec("format")).judge([Graded.from_output(text, thinking)])
    assert found.value == right


def test_cut_off_answers_and_empty_thoughts_are_bad_form() -> None:
    cut = Graded.from_output("one</think>7", True, finished=False)
    empty = Graded.from_output("\n</think>7", True)
    for spec, item, right in [
        ("format", cut, 0),
        ("format(finished=false)", cut, 1),
        ("format", empty, 1),
        ("format(thought=true)", empty, 0),
    ]:
        assert build(parse_spec(spec)).judge([item])[0].value == right


def test_length_is_punished_softly() -> None:
    spec = "length(max=100, cache=20)"
    lengths = {1: 0, 80: 0, 81: -0.05, 90: -0.5, 100: -1, 101: -1, 5000: -1}
    assert {length: value(spec, "x", num_tokens=length) for length in lengths} == pytest.approx(lengths)
    assert score(spec, "x").event == "no_length"
    with pytest.raises(ConfigError, match="cache"):
        build(parse_spec("length(max=10, cache=20)"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("exakt", "did you mean exact"),
        ("exact(cases=true)", r"option \('cases'\) of reward exact is unknown"),
        ("numeric(take=all)", "one of last, first, only"),
        ("numeric(tolerance=-1)", "at least 0"),
        ("boxes(threshold=2)", "from 0"),
        ("regex", "must not be empty"),
        ("regex(pattern='(')", "cannot be read"),
        ("function(at=x)", "file.py:name"),
    ],
)
def test_specs_that_cannot_be_built_are_named(spec: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(parse_spec(spec))


def test_boxed_is_the_last_with_its_brackets_paired() -> None:
    assert last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{1") is None
    assert last_boxed("none") is None
