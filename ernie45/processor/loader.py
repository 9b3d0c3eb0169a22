"""From what users send as pictures to patches: fetched together, decoded in threads, kept by content.

Knows nothing about text, requests or models.
"""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from ernie45.config.errors import MediaError, MediaUnknownError, RequestError
from ernie45.config.processor import ProcessorConfig
from ernie45.processor.fetch import Fetcher, run_alone
from ernie45.processor.image import Patches, content_hash, image_patches
from ernie45.processor.media import check_image_start, load_image
from ernie45.processor.media_cache import LoadedMedia, MediaCache, MediaKey
from ernie45.processor.messages import MediaSource
from ernie45.processor.positions import num_media_tokens
from ernie45.processor.source import MediaLimits, describe, is_download, read_bytes
from ernie45.processor.video import Video, check_video_start, video_patches

_MAX_AT_ONCE_PER_REQUEST = 16  # one with a hundred pictures leaves the threads to others in between


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Of one conversation.

    tenant      who may find what is kept; the same picture of two tenants is processed and kept twice.
    config      the processing, if not the loader's own.
    max_tokens  visual tokens that have room; loading ends as soon as there are more.
    """

    tenant: str = ""
    config: ProcessorConfig | None = None
    max_tokens: int | None = None


class Processing(NamedTuple):
    """How a picture is processed, and where and for whom it is kept."""

    config: ProcessorConfig
    limits: MediaLimits
    cache: MediaCache | None = None
    tenant: str = ""


class MediaLoader:
    """Loads media for many conversations at once, in one event loop.

    Downloads run in the loop over one bounded pool of connections, several of a request at a time. All else that takes time
    (base64, files, decoding, patches) runs in `num_workers` threads for images and half as many for videos, which take
    seconds and so must not keep images waiting.
    """

    def __init__(
        self, config: ProcessorConfig, limits: MediaLimits, cache: MediaCache | None = None, num_workers: int = 4
    ) -> None:
        self.config = config
        self.limits = limits
        self.cache = cache
        self._fetcher: Fetcher | None = None
        self._under_way: dict[MediaKey, _UnderWay] = {}
        self._pools = {
            "image": ThreadPoolExecutor(num_workers, thread_name_prefix="ernie45-image"),
            "video": ThreadPoolExecutor(max(1, num_workers // 2), thread_name_prefix="ernie45-video"),
        }

    async def load(self, sources: Sequence[MediaSource], options: LoadOptions | None = None) -> tuple[LoadedMedia, ...]:
        """All of them, in order. The first that fails ends the others; MediaError, or RequestError over max_tokens."""
        options = options or LoadOptions()
        slots = asyncio.Semaphore(_MAX_AT_ONCE_PER_REQUEST)
        tasks = [asyncio.ensure_future(self._load(source, options, slots)) for source in sources]
        num_tokens = 0
        try:
            for task in asyncio.as_completed(tasks):
                media = await task
                num_tokens += num_media_tokens(media.grid, self.config.merge_size)
                if options.max_tokens is not None and num_tokens > options.max_tokens:
                    raise RequestError(
                        f"messages (pictures of {num_tokens} tokens or more) must fit into {options.max_tokens} tokens; send "
                        "fewer or smaller ones"
                    )
            return tuple(task.result() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End threads and connections."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if self._fetcher is not None:
            await self._fetcher.close()

    async def _load(self, media: MediaSource, options: LoadOptions, slots: asyncio.Semaphore) -> LoadedMedia:
        config = options.config or self.config
        known = find_named(media, config, self.cache, options.tenant)
        if known is not None:
            return known
        processing = Processing(config, self.limits, self.cache, options.tenant)
        async with slots:
            if not is_download(media.source):
                return await self._process(media, processing, None)
            async with _fetched(self._fetcher_of_loop(), media, self.limits) as data:
                return await self._process(media, processing, data)

    async def _process(self, media: MediaSource, processing: Processing, data: bytes | None) -> LoadedMedia:
        """In threads: read, looked up, decoded. Equal pictures of a tenant that are under way together are decoded once."""
        pool, loop = self._pools[media.kind], asyncio.get_running_loop()
        read = await loop.run_in_executor(pool, _read, media, processing, data)
        if read.known is not None:
            return _keep(read, processing, read.known)
        shared = self._under_way.get(read.key) if read.key is not None else None
        if shared is not None and not shared.future.cancelled():
            try:
                return _keep(read, processing, await shared.result())
            except MediaError:
                pass  # what was said is about another part of a message: find out what there is to say about this one
        own = _UnderWay(loop, pool, read, processing)
        if read.key is not None:
            self._under_way[read.key] = own
            own.future.add_done_callback(lambda _: self._forget(read.key, own))
        return _keep(read, processing, await own.result())

    def _forget(self, key: MediaKey | None, ended: "_UnderWay") -> None:
        if key is not None and self._under_way.get(key) is ended:
            del self._under_way[key]

    def _fetcher_of_loop(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = Fetcher(self.limits.of_fetch)
        return self._fetcher


class _UnderWay:
    """A picture that is decoded for all who wait for it; once nobody does, it is not wanted any more."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor, read: "_Read", processing: Processing
    ) -> None:
        self.num_waiting = 0
        self._unwanted = threading.Event()
        self.future = loop.run_in_executor(pool, _decode, read, processing, self._unwanted.is_set)

    async def result(self) -> LoadedMedia:
        self.num_waiting += 1
        try:
            return await asyncio.shield(self.future)
        finally:
            self.num_waiting -= 1
            if not self.num_waiting:
                self._unwanted.set()  # clients have left, or other pictures failed: a video stops in the middle
                self.future.cancel()


def load_all(
    sources: Sequence[MediaSource], config: ProcessorConfig, limits: MediaLimits, cache: MediaCache | None = None
) -> list[LoadedMedia]:
    """The same for callers without an event loop: downloads together, the rest one after the other."""
    named = [find_named(media, config, cache) for media in sources]
    waiting = [media for media, known in zip(sources, named, strict=True) if known is None and is_download(media.source)]
    bodies = iter(run_alone(_fetch_all(waiting, limits)) if waiting else ())
    loaded = []
    for media, known in zip(sources, named, strict=True):
        data = next(bodies) if known is None and is_download(media.source) else None
        loaded.append(known or load_media(media, Processing(config, limits, cache), data))
    return loaded


def find_named(media: MediaSource, config: ProcessorConfig, cache: MediaCache | None, tenant: str = "") -> LoadedMedia | None:
    """What the cache has for a picture's `uuid`: if no bytes came with it, or the same address as then.

    MediaUnknownError if there are no bytes and the cache does not have it.
    """
    if media.uuid is None:
        return None
    known, origin = cache.find_name(tenant, media.kind, media.uuid, config) if cache is not None else (None, None)
    if media.source is None:
        if known is None:
            raise MediaUnknownError(
                f"{media.field} has no address, and its uuid ({media.uuid[:80]!r}) is not remembered; send the picture again"
            )
        return known
    return known if is_download(media.source) and media.source == origin else None


def load_media(
    media: MediaSource,
    processing: Processing,
    data: bytes | None = None,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> LoadedMedia:
    """One picture, processed or found in the cache. data: its bytes, where they were fetched already."""
    read = _read(media, processing, data)
    return _keep(read, processing, read.known or _decode(read, processing, is_unwanted))


class _Read(NamedTuple):
    """A picture before it is decoded. source: its bytes, or what has none. known: what the cache has for it."""

    media: MediaSource
    source: Any
    key: MediaKey | None = None
    known: LoadedMedia | None = None


def _read(media: MediaSource, processing: Processing, data: bytes | None) -> _Read:
    config, limits, cache, tenant = processing
    if isinstance(media.source, (Image.Image, Video)) or (data is None and cache is None):
        return _Read(media, media.source)
    if data is None:
        max_bytes = limits.max_image_bytes if media.kind == "image" else limits.max_video_bytes
        data = read_bytes(media.source, max_bytes, limits, media.field)
    if cache is None:
        return _Read(media, data)
    key = MediaKey(tenant, media.kind, hashlib.sha256(data).digest(), config)
    return _Read(media, data, key, cache.get(key))


def _keep(read: _Read, processing: Processing, loaded: LoadedMedia) -> LoadedMedia:
    """Let the cache have a picture, under its name too, if it has one."""
    cache, media = processing.cache, read.media
    if cache is not None and read.key is not None:
        if read.known is None:
            cache.put(read.key, loaded)
        if media.uuid is not None:
            cache.name(read.key, media.uuid, media.source if is_download(media.source) else None)
    return loaded


def _decode(read: _Read, processing: Processing, is_unwanted: Callable[[], bool]) -> LoadedMedia:
    config, limits = processing.config, processing.limits
    media, source = read.media, read.source
    field = media.field
    if isinstance(media.source, os.PathLike):
        field = f"{field} ({describe(media.source)})"  # its bytes alone have no name for errors
    patches: Patches
    if media.kind == "video":
        patches = video_patches(source, config, limits, field, is_unwanted)
    else:
        patches = image_patches(load_image(source, limits, field), config, field)
    return LoadedMedia(media.kind, patches.patches_PC, patches.grid, content_hash(patches))


@asynccontextmanager
async def _fetched(fetcher: Fetcher, media: MediaSource, limits: MediaLimits) -> AsyncIterator[bytes]:
    """The bytes behind an address; they count as under way until they are not needed any more."""
    check, max_bytes = (
        (check_image_start, limits.max_image_bytes) if media.kind == "image" else (check_video_start, limits.max_video_bytes)
    )

    def sniff(start: bytes) -> None:
        check(start, media.source, media.field)

    async with fetcher.fetched(media.source, max_bytes, media.field, sniff) as data:
        # An empty body goes through the same check as one that was read from a file.
        yield read_bytes(data, max_bytes, limits, media.field)


async def _fetch_all(sources: Sequence[MediaSource], limits: MediaLimits) -> list[bytes]:
    fetcher = Fetcher(limits.of_fetch)

    async def fetch(media: MediaSource) -> bytes:
        async with _fetched(fetcher, media, limits) as data:
            return data

    try:
        return await asyncio.gather(*map(fetch, sources))
    finally:
        await fetcher.close()
