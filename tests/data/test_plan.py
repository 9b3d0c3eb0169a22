"""Packs hold every record once, within both budgets, and are full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.errors import DataError
from ernie45.data.plan import Budget, fullness, plan_packs
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.model import tiny_processor
from tests.data.corpus import samples

BUDGET = 1600  # the tiny recipes' own


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 80)), min_size=1, max_size=120),
    st.integers(1, 40),
    st.sampled_from([0, 80, 100]),
)
def test_every_record_once_within_both_budgets(sizes: list[tuple[int, int]], window: int, patches: int) -> None:
    table = np.array(sizes)
    packs = plan_packs(range(len(sizes)), table, Budget(50, patches), window)
    assert sorted(record for pack in packs for record in pack) == list(range(len(sizes)))
    for pack in packs:
        tokens, used = table[pack].sum(axis=0)
        assert tokens <= 50
        assert not patches or used <= patches


def test_a_record_that_fits_nowhere_is_named() -> None:
    with pytest.raises(DataError, match=r"record 1 \(60 tokens, 0 patches\) must fit into a pack of 50 tokens"):
        plan_packs([0, 1], np.array([[10, 0], [60, 0]]), Budget(50), 10)
    with pytest.raises(DataError, match=r"any number of|and 5 patches"):
        plan_packs([0], np.array([[10, 6]]), Budget(50, 5), 10)


@pytest.mark.parametrize("patches", [0, 3200])
def test_the_tiny_data_fills_packs(patches: int) -> None:
    """By tokens alone, and where patches bind as well: there the fuller of the two counts."""
    encoder = SampleEncoder(tiny_processor())
    made = [encoder.encode(sample, number % 2 == 0) for number, sample in enumerate(samples(1500))]
    sizes = np.array([[len(item.inputs), len(item.inputs.patches)] for item in made])
    budget = Budget(BUDGET, patches)
    packs = plan_packs(range(len(sizes)), sizes, budget, 2048)
    if not patches:
        assert fullness(packs, sizes, budget) >= 0.97
        assert fullness(packs[:-1], sizes, budget) >= 0.99
    used = np.array([sizes[pack].sum(axis=0) for pack in packs])
    room = [BUDGET, patches or np.inf]
    assert (used / room).max(axis=1).mean() >= 0.97
