"""The pool of KV pages: who holds each page, and which idle pages still have content worth keeping.

Knows nothing about requests, what a key is made of, or the memory behind a page number.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class PagePool:
    """Pages 0 .. num_pages - 1. Each is in exactly one of three states:

    held    reference count of at least 1; may also have a key.
    idle    nobody holds it, but it has a key: it can be held again (`acquire`) until `allocate` takes it for new content,
            the least recently released first.
    blank   nobody holds it and it has no key.

    A key belongs to one page at most. `on_evict` is told of each page whose content `allocate` gives up, and its key.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int, bytes], None] | None = None) -> None:
        assert num_pages > 0, num_pages
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._num_holders = [0] * num_pages
        self._key_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._blank = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can give: blank and idle ones."""
        return len(self._blank) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one holder each and no key. The caller has checked `num_free`."""
        assert count <= self.num_free, (count, self.num_free)
        return [self._allocate_one() for _ in range(count)]

    def _allocate_one(self) -> int:
        if self._blank:
            page = self._blank.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            key = self._key_of[page]
            assert key is not None, page
            del self._page_of[key]
            self._key_of[page] = None
            if self._on_evict is not None:
                self._on_evict(page, key)
        self._num_holders[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page with this key, held or idle. It is not held for the caller: `acquire` it before any `allocate`."""
        return self._page_of.get(key)

    def acquire(self, page: int) -> None:
        """Add a holder to a page that is held or idle."""
        if self._num_holders[page] == 0:
            del self._idle[page]
        self._num_holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one holder from each page. Those that come first stay longest in the cache."""
        for page in reversed(list(pages)):
            assert self._num_holders[page] > 0, page
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                if self._key_of[page] is None:
                    self._blank.append(page)
                else:
                    self._idle[page] = None

    def publish(self, page: int, key: bytes) -> None:
        """Give a held page its key; no effect if a page with the same content already has it."""
        assert self._num_holders[page] > 0, page
        assert self._key_of[page] is None, page
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def idle_keys(self) -> list[tuple[int, bytes]]:
        """Idle pages and their keys, the next to be evicted first."""
        return [(page, key) for page in self._idle if (key := self._key_of[page]) is not None]

    def forget_keys(self) -> None:
        """No page has content worth finding any more; idle pages become blank."""
        self._blank += self._idle
        self._idle.clear()
        self._page_of.clear()
        self._key_of = [None] * self.num_pages

    def num_holders(self, page: int) -> int:
        return self._num_holders[page]

    def check_integrity(self) -> None:
        """Assert that each page is in exactly one state and that keys and pages match one to one."""
        blank = set(self._blank)
        assert len(blank) == len(self._blank), self._blank
        for page in range(self.num_pages):
            held, keyed = self._num_holders[page] > 0, self._key_of[page] is not None
            assert self._num_holders[page] >= 0, page
            assert (page in blank) == (not held and not keyed), (page, held, keyed)
            assert (page in self._idle) == (not held and keyed), (page, held, keyed)
        assert {key: page for page, key in enumerate(self._key_of) if key is not None} == self._page_of, self._page_of
