"""Pages: states, order of eviction, keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.engine.pages import PagePool


def test_blank_pages_are_used_before_cached_ones():
    pool = PagePool(3)
    (page,) = pool.allocate(1)
    pool.publish(page, b"a")
    pool.release([page])
    pool.allocate(2)
    assert pool.find(b"a") == page
    assert pool.allocate(1) == [page]
    assert pool.find(b"a") is None


def test_least_recently_released_goes_first_and_prefixes_stay_longest():
    pool = PagePool(4)
    pages = pool.allocate(4)
    for page, key in zip(pages, (b"a0", b"a1", b"b0", b"b1"), strict=True):
        pool.publish(page, key)
    pool.release(pages[2:])
    pool.release(pages[:2])
    evicted = []
    while pool.num_free:
        before = {key for key in (b"a0", b"a1", b"b0", b"b1") if pool.find(key) is not None}
        pool.allocate(1)
        evicted += [key for key in before if pool.find(key) is None]
    assert evicted == [b"b1", b"b0", b"a1", b"a0"]


def test_an_idle_page_can_be_held_again():
    pool = PagePool(1)
    (page,) = pool.allocate(1)
    pool.publish(page, b"a")
    pool.release([page])
    pool.acquire(page)
    assert pool.num_free == 0
    pool.check_integrity()


def test_the_same_content_twice_keeps_the_first_page():
    pool = PagePool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    assert pool.find(b"a") == first
    pool.release([second])
    pool.check_integrity()


def test_too_many_pages_are_refused():
    with pytest.raises(AssertionError):
        PagePool(2).allocate(3)


@given(st.lists(st.tuples(st.sampled_from(["allocate", "release", "acquire", "publish"]), st.integers(0, 9))))
def test_random_use_keeps_the_states_apart(actions: list[tuple[str, int]]):
    pool, held = PagePool(5), []
    for action, value in actions:
        if action == "allocate" and value % 3 <= pool.num_free:
            held += pool.allocate(value % 3)
        elif action == "release" and held:
            pool.release([held.pop(value % len(held))])
        elif action == "acquire" and (page := pool.find(bytes([value % 4]))) is not None:
            pool.acquire(page)
            held.append(page)
        elif (
            action == "publish"
            and held
            and (page := held[value % len(held)]) not in [pool.find(bytes([key])) for key in range(4)]
        ):
            pool.publish(page, bytes([value % 4]))
        pool.check_integrity()
        assert sorted(held) == sorted(page for page in range(5) for _ in range(pool.num_holders(page)))
