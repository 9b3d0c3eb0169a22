"""Whatever a model writes, judges of text give it a value: an answer must not be able to get itself masked."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.rewards import parse_spec
from ernie45.data.answers import Graded
from ernie45.train.rewards.registry import build

PIECES = [
    *(
        "A",
        "(b)",
        "answer is ",
        "\\boxed{",
        "}",
        "{",
        "[",
        "]",
        "1",
        "-",
        "−",
        "1/0",
        "3/4",
        "\\frac{1}{2}",
        "9e999",
        "1,000",
        "%",
    ),
    *(" km", "```", "```json\n", "|", "|---|", "\n", ": ", '{"a": ', '{"bbox": [1,2,3,4]}', "[1, 2, 3, 4]", "<|LOC_5|>" * 4),
    *("<think>", "</think>", "<response>", "</response>", "٣", "²", "\ud800", "\0", "1" * 400, '"', "null", "true", "NaN", "0"),
]
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
JUDGES = {
    "exact(case=false, spaces=false, punctuation=false, unicode=false)": "x",
    "choice": "B",
    "numeric": "3 km",
    "numeric(take=only)": "50%",
    "relaxed": "3",
    "table": '{"a": {"b": 1}}',
    "edit": "some text",
    "anls": "some text",
    "boxes(threshold=0.5)": "[1, 2, 3, 4]",
    "format(thought=true)": "",
}


@pytest.mark.parametrize("spec", JUDGES)
@given(text=TEXTS, thinking=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_text_has_a_value_from_0_to_1(spec: str, text: str, thinking: bool) -> None:
    item = Graded.from_output(text, thinking, reference=JUDGES[spec], extra={"choices": ["red", "blue"]})
    [score] = build(parse_spec(spec)).judge([item])
    assert score.value is not None, score
    assert 0 <= score.value <= 1


@pytest.mark.parametrize("spec", JUDGES)
def test_long_texts_take_no_time(spec: str) -> None:
    """Patterns and tables that would take the square of a text's length show here."""
    reward = build(parse_spec(spec))
    pieces = [
        "1",
        "1,000,",
        "A ",
        "[1, 2, 3, 4]",
        "<|LOC_5|>",
        "|",
        "a: b\n",
        "\\boxed{",
        "- ",
        "[",
        '{"a":',
        "1 1/2 ",
        " " * 3,
        "ab",
    ]
    start = time.process_time()
    for piece in pieces:
        item = Graded(answer=piece * (20_000 // len(piece)), reference=JUDGES[spec])
        [score] = reward.judge([item])
        assert score.value is not None, (piece, score)
    assert time.process_time() - start < 4
