"""Look-up of what followed before: against a search of the whole sequence, and its growth."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from ernie45.engine.ngram import NgramIndex

MIN, MAX = 2, 4


def searched(tokens: list[int], count: int) -> list[int]:
    """The newest of the places with the longest repeat, found by looking everywhere."""
    best, best_run = -1, MIN - 1
    for place in range(len(tokens) - 2, MIN - 2, -1):
        run = 0
        while run < MAX and run <= place and tokens[place - run] == tokens[len(tokens) - 1 - run]:
            run += 1
        if run > best_run:
            best, best_run = place, run
    if best < 0:
        return []
    guesses = list(tokens)
    for index in range(count):
        guesses.append(guesses[best + 1 + index])
    return guesses[len(tokens) :]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 6))
def test_it_finds_what_a_search_finds(tokens: list[int], count: int) -> None:
    grown = array("q", tokens[:1])
    index = NgramIndex(grown, MIN, MAX)
    for token in tokens[1:]:
        index.propose(count)  # it may be asked at any time
        grown.append(token)
    # Few places are compared, so only sequences in which the run occurs seldom are searched whole.
    if sum(tokens[i : i + MIN] == tokens[-MIN:] for i in range(len(tokens))) <= 8:
        assert index.propose(count) == searched(tokens, count)


def test_a_guess_goes_on_beyond_the_end() -> None:
    assert NgramIndex(array("q", [7, 1, 2, 3, 1, 2]), 2, 4).propose(5) == [3, 1, 2, 3, 1]
    assert NgramIndex(array("q", [5, 5, 5]), 2, 4).propose(3) == [5, 5, 5]


def test_the_longest_repeat_wins_over_the_newest() -> None:
    assert NgramIndex(array("q", [1, 2, 3, 9, 8, 2, 3, 4, 1, 2, 3]), 2, 4).propose(1) == [9]


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert NgramIndex(array("q", [1, 2, 3, 4]), 2, 4).propose(3) == []
    assert NgramIndex(array("q", [1]), 2, 4).propose(3) == []
    assert NgramIndex(array("q", [1, 1, 1]), 2, 4).propose(0) == []
