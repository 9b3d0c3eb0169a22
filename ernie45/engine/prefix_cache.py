"""Content keys of full KV pages, and how much of a new prompt is in the cache already.

Knows nothing about eviction (`pages`) or about when pages are filled (`scheduler`).

What a page holds is a function of its tokens, their rope positions, the pictures under its placeholders and everything before.
A key is a hash of exactly that: parent key, token ids, positions, and for every picture its content hash and where the page
begins in it. So equal keys have equal content, wherever and whenever the page was computed.
"""

from bisect import bisect_right
from hashlib import blake2b

from ernie45.config.inputs import MediaItem
from ernie45.engine.pages import PagePool
from ernie45.engine.request import Request

_ROOT = b"ernie45 page"
_KEY_BYTES = 16


class PrefixCache:
    """Finds and publishes pages by content. Switched off, it finds nothing and publishes nothing."""

    def __init__(self, pool: PagePool, page_size: int, enabled: bool) -> None:
        self._pool = pool
        self._page_size = page_size
        self.enabled = enabled
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def acquire_prefix(self, request: Request) -> list[int]:
        """Hold for the caller the longest run of cached pages at the request's beginning.

        At least one token is left to compute, since its logits are needed: a prompt that is cached whole backs off one page.
        """
        pages: list[int] = []
        if not self.enabled or request.owes_prompt_logprobs:
            return pages
        for index in range((request.num_tokens - 1) // self._page_size):
            page = self._pool.find(self._key(request, index))
            if page is None:
                break
            self._pool.acquire(page)
            pages.append(page)
        return pages

    def count(self, request: Request) -> None:
        """Note an admitted request's hit, for the metrics."""
        self.num_queried_tokens += request.num_tokens
        self.num_hit_tokens += request.num_cached_tokens

    def publish(self, request: Request, start: int, end: int) -> None:
        """Give every page of the request that tokens start to end have filled its key."""
        if self.enabled:
            for index in range(start // self._page_size, end // self._page_size):
                self._pool.publish(request.pages[index], self._key(request, index))

    def _key(self, request: Request, index: int) -> bytes:
        keys = request.page_keys
        while len(keys) <= index:
            start = len(keys) * self._page_size
            keys.append(_page_key(keys[-1] if keys else _ROOT, request, start, start + self._page_size))
        return keys[index]


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
