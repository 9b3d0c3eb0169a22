"""Content keys of full KV pages, and how much of a new prompt is in the cache already, or is just being computed.

Knows nothing about eviction (`pages`), about how lower tiers keep content (`tiers`) or when pages are filled (`scheduler`).

What a page holds is a function of its tokens, their rope positions, the pictures under its placeholders, the adapter and
everything before. A key is a hash of exactly that and of the request's salt: parent key, token ids, positions, and for every
picture its content hash and where the page begins in it. So equal keys have equal content, wherever and whenever the page was
computed.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from ernie45.config.inputs import MediaItem
from ernie45.engine.pages import PagePool
from ernie45.engine.request import Request
from ernie45.engine.tiers import PageTiers

_ROOT = b"ernie45 page"
_KEY_BYTES = 16


@dataclass
class Match:
    """What the cache has for a request's beginning, page by page: the number of a held page, or None and a key to bring up.

    wait: why the request should not begin yet: the next page is being computed, or read from disk.
    """

    pages: list[int | None] = field(default_factory=list)
    below: list[bytes] = field(default_factory=list)
    num_host: int = 0
    wait: Literal["computing", "reading", None] = None

    @property
    def held(self) -> list[int]:
        return [page for page in self.pages if page is not None]


class PrefixCache:
    """Finds and publishes pages by content. Switched off, it finds nothing and publishes nothing.

    Counters in tokens: of admitted prompts (`num_queried_tokens`), and of those found in the KV cache, in host memory and on
    disk.
    """

    def __init__(self, pool: PagePool, tiers: PageTiers, page_size: int, enabled: bool) -> None:
        self._pool = pool
        self._tiers = tiers
        self._page_size = page_size
        self.enabled = enabled
        self._computing: dict[bytes, Request] = {}
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_host_hit_tokens = 0
        self.num_disk_hit_tokens = 0

    def must_wait(self, request: Request) -> bool:
        """Whether what the request waited for last time is still under way."""
        return request.awaited_key in self._computing or self._tiers.is_fetching(request.request_id)

    def match(self, request: Request) -> Match:
        """The longest run of cached pages at the request's beginning; those in the KV cache are held for the caller.

        At least one token is left to compute, since its logits are needed: a prompt that is cached whole backs off one page.
        """
        match = Match()
        request.awaited_key = None
        if not self.enabled or request.owes_prompt_logprobs:
            return match
        unread: list[bytes] = []
        for index in range((request.num_tokens - 1) // self._page_size):
            key = self._key(request, index)
            page = self._pool.find(key)
            if page is not None:
                self._pool.acquire(page)
            elif key in self._computing:
                match.wait, request.awaited_key = "computing", key
                break
            else:
                tier = self._tiers.tier_of(request.request_id, key)
                if tier is None:
                    break
                if tier == "unread":
                    unread.append(key)
                match.below.append(key)
                match.num_host += tier == "host"
            match.pages.append(page)
        if unread and match.wait is None:
            self._tiers.fetch(request.request_id, unread)
            match.wait = "reading"  # even if that is done by now: what came of it, the next look tells
        return match

    def drop(self, match: Match) -> None:
        """The caller does not take what was matched."""
        self._pool.release(match.held)

    def claim(self, request: Request, match: Match, num_pages: int) -> list[int]:
        """The request's `num_pages` pages: what was matched, brought up where need be, and new ones. There must be room."""
        held = self._tiers.hold(request.request_id, match.below)
        fresh = self._pool.allocate(num_pages - len(match.held))
        fresh.reverse()
        raised = [fresh.pop() for _ in held]
        self._tiers.bring_up(held, raised)
        for copy, page in zip(held, raised, strict=True):
            self._pool.publish(page, copy.key)
        self._tiers.forget(request.request_id)
        raised.reverse()
        pages = [page if page is not None else raised.pop() for page in match.pages] + fresh
        request.num_published_pages = len(match.pages)
        if self.enabled:
            for index in range(len(match.pages), request.num_tokens // self._page_size):
                self._computing.setdefault(self._key(request, index), request)
        return pages

    def count(self, request: Request, match: Match) -> None:
        """Note an admitted request's hit, for the metrics."""
        self.num_queried_tokens += request.num_tokens
        self.num_hit_tokens += request.num_cached_tokens
        self.num_host_hit_tokens += match.num_host * self._page_size
        self.num_disk_hit_tokens += (len(match.below) - match.num_host) * self._page_size

    def publish(self, request: Request) -> None:
        """Give a key to every page that is full with tokens known, computed or planned to be, and has none yet."""
        if self.enabled:
            num_full = min(request.num_computed_tokens, request.num_tokens) // self._page_size
            for index in range(request.num_published_pages, num_full):
                key = self._key(request, index)
                self._pool.publish(request.pages[index], key)
                if self._computing.get(key) is request:
                    del self._computing[key]
            request.num_published_pages = max(num_full, request.num_published_pages)

    def release(self, request: Request) -> None:
        """The request gives up its pages, and will not compute what it has not computed."""
        self._tiers.forget(request.request_id)
        for key in request.page_keys[request.num_published_pages :]:
            if self._computing.get(key) is request:
                del self._computing[key]
        self._pool.release(request.pages)
        request.num_published_pages = 0

    def check_integrity(self) -> None:
        """Assert that whoever is waited for runs."""
        assert all(request.state == "running" for request in self._computing.values())

    def _key(self, request: Request, index: int) -> bytes:
        keys = request.page_keys
        while len(keys) <= index:
            start = len(keys) * self._page_size
            keys.append(_page_key(keys[-1] if keys else _root(request), request, start, start + self._page_size))
        return keys[index]


def _root(request: Request) -> bytes:
    """Where a chain of keys begins: pages are shared only under one adapter and one salt."""
    digest = blake2b(_ROOT, digest_size=_KEY_BYTES)
    for name in (request.adapter_hash, request.cache_salt):
        text = b"" if name is None else name.encode("utf-8", "surrogatepass")
        digest.update(b"%d %d " % (name is not None, len(text)) + text)
    return digest.digest()


def _page_key(parent: bytes, request: Request, start: int, end: int) -> bytes:
    digest = blake2b(parent, digest_size=_KEY_BYTES)
    digest.update(request.tokens[start:end].tobytes())
    digest.update(request.positions(start, end).tobytes())
    media = request.inputs.media
    if media:
        for item in _overlapping(media, start, end):
            digest.update(f"{item.content_hash} {start - item.offset} ".encode())
    return digest.digest()


def _overlapping(media: tuple[MediaItem, ...], start: int, end: int) -> tuple[MediaItem, ...]:
    first = bisect_right(media, start, key=lambda item: item.offset + item.length)
    last = bisect_right(media, end - 1, key=lambda item: item.offset)
    return media[first:last]
