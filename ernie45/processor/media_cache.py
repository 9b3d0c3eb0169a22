"""Processed pictures kept by content, so that the same one in a second turn is not decoded and cut into patches again.

Knows nothing about files, requests or who a tenant is.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ernie45.processor.messages import MediaKind

_MAX_NAMES = 65536


class LoadedMedia(NamedTuple):
    """One image or video as the model takes it. content_hash: `image.content_hash` of its patches and grid."""

    kind: MediaKind
    patches_PC: np.ndarray
    grid: tuple[int, int, int]
    content_hash: str


class MediaKey(NamedTuple):
    """What a processed picture depends on. tenant: who may find it; digest: of the file; processing: the config used."""

    tenant: str
    kind: MediaKind
    digest: bytes
    processing: Hashable


class _Name(NamedTuple):
    key: MediaKey
    origin: str | None


@dataclass(frozen=True)
class MediaCacheStats:
    """num_bytes of max_bytes are used by num_items. Hits and misses since the start."""

    num_items: int
    num_bytes: int
    max_bytes: int
    num_hits: int
    num_misses: int


class MediaCache:
    """Least recently used goes first. Any thread may call it.

    A name (a client's `uuid`) is an alias that only its tenant can use, for a picture that this tenant once sent in full. The
    picture itself is always found by the digest of its bytes, so a name can never show one tenant the picture of another,
    nor make a wrong picture look like a right one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._items: OrderedDict[MediaKey, LoadedMedia] = OrderedDict()
        self._names: OrderedDict[tuple[str, MediaKind, str, Hashable], _Name] = OrderedDict()
        self._num_bytes = self._num_hits = self._num_misses = 0

    def get(self, key: MediaKey) -> LoadedMedia | None:
        """A picture by its content; makes it the most recently used."""
        with self._lock:
            return self._find(key)

    def put(self, key: MediaKey, media: LoadedMedia) -> None:
        """Keep a picture, if it fits at all."""
        size = media.patches_PC.nbytes
        if size > self._max_bytes:
            return
        with self._lock:
            if key not in self._items:
                self._num_bytes += size
            self._items[key] = media
            self._items.move_to_end(key)
            while self._num_bytes > self._max_bytes:
                _, dropped = self._items.popitem(last=False)
                self._num_bytes -= dropped.patches_PC.nbytes

    def name(self, key: MediaKey, name: str, origin: str | None) -> None:
        """Let the tenant of `key` find that picture by a name. origin: the address it was fetched from, if it was."""
        with self._lock:
            alias = (key.tenant, key.kind, name, key.processing)
            self._names[alias] = _Name(key, origin)
            self._names.move_to_end(alias)
            if len(self._names) > _MAX_NAMES:
                self._names.popitem(last=False)

    def find_name(self, tenant: str, kind: MediaKind, name: str, processing: Hashable) -> tuple[LoadedMedia | None, str | None]:
        """What a tenant's name stands for, if it is still here, and the address it came from."""
        with self._lock:
            found = self._names.get((tenant, kind, name, processing))
            if found is None:
                return None, None
            return self._find(found.key), found.origin

    def stats(self) -> MediaCacheStats:
        """Sizes and counts now."""
        with self._lock:
            return MediaCacheStats(len(self._items), self._num_bytes, self._max_bytes, self._num_hits, self._num_misses)

    def check_integrity(self) -> None:
        """That the books are right; for tests."""
        with self._lock:
            assert self._num_bytes == sum(media.patches_PC.nbytes for media in self._items.values()), self._num_bytes
            assert self._num_bytes <= self._max_bytes, (self._num_bytes, self._max_bytes)
            assert len(self._names) <= _MAX_NAMES, len(self._names)

    def _find(self, key: MediaKey) -> LoadedMedia | None:
        media = self._items.get(key)
        if media is None:
            self._num_misses += 1
            return None
        self._num_hits += 1
        self._items.move_to_end(key)
        return media
