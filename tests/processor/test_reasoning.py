"""Thought and answer come apart the same way however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.processor.reasoning import ReasoningStream, split_reasoning
from ernie45.server.stops import StopStrings


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("a thought</think>an answer", "a thought", "an answer"),
        ("\na thought \n</think>\n\nan answer\n", "a thought", "an answer\n"),
        ("never ends \n", "never ends", ""),
        ("never ends </thin", "never ends </thin", ""),
        ("</think>answer", "", "answer"),
        ("", "", ""),
        ("a < b </think></think>", "a < b", "</think>"),
        ("</thi</think>  indented", "</thi", "  indented"),
        ("只想一下\n</think>\n\n好的", "只想一下", "好的"),
    ],
)
def test_split(text: str, reasoning: str, content: str) -> None:
    assert split_reasoning(text) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\n\n<response>\nHello <b>\n</response>\n", "Hello <b>"),
        ("<response>a</response>", "a"),
        ("<response>\n</response>", ""),
        ("<response>\n a\n\nb \n", "a\n\nb \n"),  # cut off
        ("<response>a</respon", "a</respon"),
        ("<response>a</response>\n\nb</response>\n", "a\n\nb</response>\n"),
        ("<respons> a", "<respons> a"),
        (" a <response>b</response>", " a <response>b</response>"),
        ("<response><response>a</response></response>", "<response>a</response>"),
    ],
)
def test_the_wrapping_of_an_answer_is_left_out(text: str, content: str) -> None:
    assert split_reasoning(f"hm</think>{text}", response_tags=True) == ("hm", content)
    assert split_reasoning(text.lstrip("\n"), thinking=False, response_tags=True) == ("", content)
    assert split_reasoning(text, thinking=False).content == text


def test_an_answer_without_wrapping_is_not_held_back() -> None:
    stream = ReasoningStream(thinking=True, response_tags=True)
    assert stream.push("hm</think>\n\nA") == [("reasoning", "hm"), ("content", "A")]
    assert stream.push(" <res") == [("content", " <res")]


def test_without_thinking_all_is_content() -> None:
    assert split_reasoning("\n a</think>b ", thinking=False) == ("", "\n a</think>b ")


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    parts = [
        "</think>",
        "</th",
        "<",
        "ink>",
        "\n",
        " ",
        "a",
        "字",
        "stop",
        "st",
        "<response>",
        "</response>",
        "</resp",
        "onse>",
    ]
    pieces = draw(st.lists(st.sampled_from(parts), max_size=12))
    text = "".join(pieces)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts(), st.booleans(), st.booleans())
def test_stream_equals_whole(case: tuple[str, list[str]], thinking: bool, response_tags: bool) -> None:
    text, chunks = case
    stream = ReasoningStream(thinking, response_tags)
    deltas = [delta for chunk in chunks for delta in stream.push(chunk)] + stream.flush()
    assert all(delta.text for delta in deltas)
    parts = tuple("".join(text for part, text in deltas if part == wanted) for wanted in ("reasoning", "content"))
    assert parts == split_reasoning(text, thinking, response_tags)
    order = [delta.part for delta in deltas]
    assert order == sorted(order, key=["reasoning", "content"].index)


@given(cut_texts(), st.lists(st.sampled_from(["stop", "st", "a", "op", "k>\n", "字a"]), min_size=1, max_size=3))
def test_stop_strings_do_not_depend_on_the_cuts(case: tuple[str, list[str]], strings: list[str]) -> None:
    text, chunks = case
    stop = StopStrings(tuple(strings))
    streamed = "".join(stop.push(chunk) for chunk in chunks) + stop.flush()
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(string) for string in strings)]
    assert stop.hit == bool(ends)
    if ends:
        longest = max(len(string) for string in strings if text[: ends[0]].endswith(string))
        assert streamed == text[: ends[0] - longest]
    else:
        assert streamed == text


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    stop = StopStrings(("END",))
    assert stop.push("so E") == "so "
    assert stop.push("N") == ""
    assert stop.push("x") == "ENx"
    assert stop.push("EN") == ""
    assert stop.push("D more") == ""
    assert stop.hit
    assert stop.push("more") == ""
