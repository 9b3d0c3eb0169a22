"""The tiny model's pairs: near misses are wrong and alike, short captions say the same, everything is repeatable."""

from collections import Counter
from random import Random

import pytest

from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.preference import SHORT_QUESTIONS, near_miss, preference_pairs, short
from ernie45.data.tiny.strips import StripWriter


@pytest.fixture(scope="module")
def writer() -> StripWriter:
    return StripWriter(training_digits("fit"))


@pytest.mark.parametrize(
    "answer", ["7", "11", "0", "407", "yes", "red", "Picture 1", "The digits 4 0 7.", "Anna has 5 apples.", "K"]
)
def test_a_near_miss_changes_one_word_or_number(answer: str) -> None:
    rng = Random(0)
    for wrong in [near_miss(rng, answer) for _ in range(50)]:
        assert wrong is not None
        differing = [pair for pair in zip(answer.split(), wrong.split(), strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1, wrong


def test_what_has_no_near_miss() -> None:
    assert near_miss(Random(0), "Hello! Ask me about it.") is None
    assert {(near_miss(Random(seed), "A red circle.") or "")[:2] for seed in range(20)} == {"A "}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The digits 4 0 7.", "4 0 7"),
        ("The digit 7.", "7"),
        ("A red circle, a blue square and a green triangle.", "red circle, blue square, green triangle"),
        ("A bar chart: A 3, B 5.", "A 3, B 5"),
    ],
)
def test_short_captions(caption: str, expected: str) -> None:
    assert short(caption) == expected


def test_pairs_are_of_both_kinds_and_repeatable(writer: StripWriter) -> None:
    pairs = preference_pairs("0", 60, writer)
    again = preference_pairs("0", 60, writer)
    assert [(pair.chosen, pair.rejected, pair.source) for pair in pairs] == [(p.chosen, p.rejected, p.source) for p in again]
    assert pairs[0].chosen != preference_pairs("1", 60, writer)[0].chosen
    counts = Counter(pair.source for pair in pairs)
    assert min(counts[source] for source in ("right", "short", "sentence")) >= 4
    assert len({pair.origin for pair in pairs}) == 60
    for pair in pairs:
        chosen, rejected = pair.chosen[0], pair.rejected[0]
        assert chosen["content"] != rejected["content"]
        assert ("reasoning_content" in chosen) == ("reasoning_content" in rejected)
        if pair.source == "right":
            continue
        asked = any(part.get("text") in SHORT_QUESTIONS for part in pair.prompt[0]["content"])
        assert asked == (pair.source == "short"), "the form depends on the question"
        wordy, brief = (rejected, chosen) if asked else (chosen, rejected)
        assert brief["content"] == short(wordy["content"])
    assert {pair.source for pair in preference_pairs("0", 20, writer, form_share=0.0)} == {"right"}
