"""The lower tiers of the prefix cache: which pages are in host memory and on disk, and which copies a step must make.

Knows nothing about tensors or about how a copy is made; `page_copier` does what is planned here, in the same order.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal, NamedTuple, Protocol

NUM_FETCHES = 4
"""Requests at most whose pages are read from disk ahead, as what was read waits in memory until its request is admitted."""


class PageCopy(NamedTuple):
    """One copy, before the step that it was planned for.

    store    page -> slot of host memory.
    load     slot -> page.
    spill    slot -> disk.
    archive  page -> disk.
    restore  data -> page.
    """

    kind: Literal["store", "load", "spill", "archive", "restore"]
    key: bytes
    page: int = -1
    slot: int = -1
    data: bytes = b""


class Disk(Protocol):
    """Pages by key on disk. All of it returns at once."""

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...

    def touch(self, key: bytes) -> None:
        """Count the page as used now."""
        ...

    def fetch(self, key: bytes) -> "Future[bytes | None]":
        """Read a page; None if it cannot be had after all, and then it is forgotten."""
        ...


class PageTiers:
    """Least-recently-used host slots over an optional disk. Content moves down when it is evicted above, and stays below when
    it is copied up, so that a second eviction costs nothing."""

    def __init__(self, num_host_slots: int = 0, disk: Disk | None = None) -> None:
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_host_slots - 1, -1, -1))
        self.num_host_slots = num_host_slots
        self._disk = disk
        self._copies: list[PageCopy] = []
        self._fetches: dict[str, dict[bytes, Future[bytes | None]]] = {}

    @property
    def num_host_pages(self) -> int:
        return len(self._slots)

    @property
    def num_disk_pages(self) -> int:
        return 0 if self._disk is None else len(self._disk)

    def take_copies(self) -> list[PageCopy]:
        """Copies planned since the last call, to be made in this order before any step that is planned from now on."""
        copies, self._copies = self._copies, []
        return copies

    def put_down(self, page: int, key: bytes) -> None:
        """A page is about to be overwritten: keep its content below."""
        if key in self._slots:
            self._slots.move_to_end(key)
        elif self.num_host_slots:
            slot = self._free_slot()
            if slot is not None:
                self._copies.append(PageCopy("store", key, page=page, slot=slot))
                self._slots[key] = slot
        else:
            self._to_disk(PageCopy("archive", key, page=page))

    def tier_of(self, request_id: str, key: bytes) -> Literal["host", "disk", "unread", None]:
        """Where a page could be brought up from; "unread": from disk, once `fetch` has read it."""
        if key in self._slots:
            return "host"
        fetches = self._fetches.get(request_id)
        if fetches is not None:  # a page that came to disk since then is not worth a second wait
            fetch = fetches.get(key)
            if fetch is None:
                return None
            if not fetch.done():
                return "unread"
            return None if fetch.result() is None else "disk"
        return "unread" if self._disk is not None and key in self._disk else None

    def fetch(self, request_id: str, keys: Sequence[bytes]) -> None:
        """Begin to read these pages for a request, unless that is under way or others are being served."""
        if request_id not in self._fetches and len(self._fetches) < NUM_FETCHES:
            assert self._disk is not None
            self._fetches[request_id] = {key: self._disk.fetch(key) for key in keys}

    def is_fetching(self, request_id: str) -> bool:
        return any(not fetch.done() for fetch in self._fetches.get(request_id, {}).values())

    def unfinished_fetch(self) -> "Future[bytes | None] | None":
        """A read that is under way, to wait for when there is nothing else to do."""
        pending = (fetch for fetches in self._fetches.values() for fetch in fetches.values() if not fetch.done())
        return next(pending, None)

    def hold(self, request_id: str, keys: Sequence[bytes]) -> list[PageCopy]:
        """Take pages that `tier_of` found out of reach of eviction, until `bring_up`. One copy each, without a page yet."""
        held = []
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is not None:
                held.append(PageCopy("load", key, slot=slot))
            else:
                data = self._fetches[request_id][key].result()
                assert data is not None, key
                held.append(PageCopy("restore", key, data=data))
        return held

    def bring_up(self, held: Sequence[PageCopy], pages: Sequence[int]) -> None:
        """Plan the copies that `hold` began, to these pages."""
        for copy, page in zip(held, pages, strict=True):
            self._copies.append(copy._replace(page=page))
            if copy.kind == "load":
                self._slots[copy.key] = copy.slot
            elif self._disk is not None:
                self._disk.touch(copy.key)

    def forget(self, request_id: str) -> None:
        """Drop what was read ahead for a request."""
        for fetch in self._fetches.pop(request_id, {}).values():
            fetch.cancel()

    def archive(self, pages: Sequence[tuple[int, bytes]]) -> None:
        """Plan to write to disk what is there no copy of: these pages of the cache, and all of host memory."""
        for key, slot in self._slots.items():
            self._to_disk(PageCopy("spill", key, slot=slot))
        for page, key in pages:
            if key not in self._slots:
                self._to_disk(PageCopy("archive", key, page=page))

    def reset(self) -> None:
        """Forget host memory and what is planned: some copies may not have been made."""
        self._copies.clear()
        self._free += self._slots.values()
        self._slots.clear()

    def check_integrity(self) -> None:
        """Assert that between two calls of the scheduler each slot is free or holds one page."""
        slots = [*self._free, *self._slots.values()]
        assert sorted(slots) == list(range(self.num_host_slots)), slots
        assert len(self._fetches) <= NUM_FETCHES, list(self._fetches)

    def _free_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        if not self._slots:  # all are held for a request that is being admitted
            return None
        key, slot = self._slots.popitem(last=False)
        self._to_disk(PageCopy("spill", key, slot=slot))
        return slot

    def _to_disk(self, copy: PageCopy) -> None:
        if self._disk is None:
            return
        if copy.key in self._disk:
            self._disk.touch(copy.key)
        else:
            self._copies.append(copy)
