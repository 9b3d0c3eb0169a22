"""Shares hold at every length; orders are permutations that depend on nothing but their key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.errors import DataError
from ernie45.data.mixture import MAX_PERIOD, Interleave
from ernie45.data.shuffle import RecordOrder, permutation


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_every_prefix_has_its_shares_to_less_than_one(weights: list[int]) -> None:
    mixture = Interleave({str(number): float(weight) for number, weight in enumerate(weights)})
    places = np.arange(2 * mixture.period + 1)
    expected = places[:, None] * np.array(weights) / sum(weights)
    counted = np.array([mixture.count_before(int(place)) for place in places])
    assert np.abs(counted - expected).max() < 1
    pattern = mixture.stretch(0, len(places) - 1)
    for source in range(len(weights)):
        assert (np.cumsum(pattern == source) == counted[1:, source]).all()


def test_decimal_weights_are_exact_and_fine_ones_are_rounded() -> None:
    assert Interleave({"a": 0.7, "b": 0.2, "c": 0.1}).counts.tolist() == [7, 2, 1]
    assert Interleave({"a": 3.0, "b": 1.0}).counts.tolist() == [3, 1]
    fine = Interleave({"a": 1 / 3, "b": 0.12345678, "c": 1e-12})
    assert fine.period <= MAX_PERIOD + 1
    assert fine.counts.min() == 1
    shares = fine.counts / fine.period
    assert abs(shares[0] - (1 / 3) / (1 / 3 + 0.12345678 + 1e-12)) < 1e-4
    with pytest.raises(DataError, match="at least one source"):
        Interleave({})


def test_a_permutation_is_the_same_for_ever() -> None:
    """Written down once: another order would silently change every run that goes on."""
    assert permutation(8, 0, "epoch", 1).tolist() == [4, 1, 6, 5, 0, 2, 7, 3]
    assert sorted(permutation(1000, "x").tolist()) == list(range(1000))
    assert permutation(1000, "x").tolist() != permutation(1000, "y").tolist()


def sources() -> dict[str, np.ndarray]:
    return {"web": np.arange(10), "code": np.arange(10, 14)}


def test_an_epoch_has_every_record_once() -> None:
    order = RecordOrder(sources(), {}, seed=0)
    first, second = order.chunk(0).tolist(), order.chunk(1).tolist()
    assert sorted(first) == sorted(second) == list(range(14))
    assert first != second
    assert RecordOrder(sources(), {}, seed=1).chunk(0).tolist() != first


def test_a_mixture_goes_through_epochs_of_each_source() -> None:
    order = RecordOrder(sources(), {"web": 1.0, "code": 1.0}, seed=0)
    stream = np.concatenate([order.chunk(number) for number in range(20)])
    for own in sources().values():
        taken = stream[np.isin(stream, own)]
        for epoch in range(len(taken) // len(own)):
            assert sorted(taken[epoch * len(own) : (epoch + 1) * len(own)].tolist()) == own.tolist()
    is_web = np.cumsum(stream < 10)
    assert np.abs(is_web - np.arange(1, len(stream) + 1) / 2).max() < 1


def test_weights_must_name_the_files() -> None:
    with pytest.raises(DataError, match=r"data.weights \(wed\) .*did you mean web\?"):
        RecordOrder(sources(), {"wed": 1.0}, seed=0)
    with pytest.raises(DataError, match="must have a weight for code, too"):
        RecordOrder(sources(), {"web": 1.0}, seed=0)
