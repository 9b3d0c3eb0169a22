"""The pictures of requests: how many, of whom, processed how; loaded before the request is translated.

Knows nothing about HTTP, text or the engine.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ernie45.config.errors import RequestError
from ernie45.config.media import limit_per_prompt, override_processor
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.processor.loader import LoadOptions, MediaLoader
from ernie45.processor.media_cache import LoadedMedia, MediaCache, MediaCacheStats
from ernie45.processor.messages import MAX_UUID_CHARACTERS, MediaSource
from ernie45.processor.source import MediaLimits

# Under what the library allows: a server holds many downloads at once, and a longer video does not fit into a context.
_MAX_VIDEO_BYTES = 256 * 2**20
_MAX_VIDEO_FRAMES = 54_000  # half an hour at 30 a second
_MAX_DECODE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class MediaRequest:
    """What a request says about pictures.

    messages    the conversation in OpenAI's form, checked as far as can be without the pictures.
    cache_salt  of the request. max_tokens: that the context has.
    kwargs      its `mm_processor_kwargs`. hashes: its `mm_hashes`, names like a part's `uuid`.
    rename      what a body without messages calls their fields, for errors.
    """

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    cache_salt: str | None = None
    kwargs: Mapping[str, Any] | None = None
    hashes: Sequence[str | None] | None = None
    rename: Callable[[str], str] = str


def media_limits(config: ServerConfig) -> MediaLimits:
    """What the processor may fetch and open for requests from the network."""
    folder = config.allowed_media_folder
    return MediaLimits(
        max_video_bytes=_MAX_VIDEO_BYTES,
        max_video_frames=_MAX_VIDEO_FRAMES,
        max_decode_seconds=_MAX_DECODE_SECONDS,
        max_bytes_in_flight=int(config.max_media_in_flight * 2**30),
        allow_private_addresses=config.allow_private_media,
        allowed_hosts=tuple(config.allowed_media_hosts),
        file_folders=(folder,) if folder else (),
    )


def tenant_of(authorization: str | None, cache_salt: str | None) -> str:
    """Who finds what a request leaves in caches that clients can ask by name: those with the same key and the same salt.

    A digest: keys are kept nowhere. On an open server everybody without a salt is one tenant.
    """
    digest = hashlib.sha256()
    for part in (authorization, cache_salt):
        data = (part or "").encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)  # so that no two pairs run together into one text
    return digest.hexdigest()


class RequestMedia:
    """Loads the pictures of all requests of one server, in its event loop."""

    def __init__(self, config: ServerConfig, processor: Processor) -> None:
        self._limits_per_prompt = limit_per_prompt(config.limit_mm_per_prompt)
        self._processing = override_processor(processor.config, config.mm_processor_kwargs)
        self._cache = MediaCache(int(config.max_processor_cache * 2**30))
        self._processor = processor
        self._loader = MediaLoader(self._processing, processor.limits, self._cache, config.num_media_workers)

    def stats(self) -> MediaCacheStats:
        """Of the processed pictures that are kept."""
        return self._cache.stats()

    async def load(self, request: MediaRequest, authorization: str | None = None) -> tuple[LoadedMedia, ...]:
        """The pictures of a conversation in order. authorization: the header, which says whose request it is.

        RequestError, ConfigError or MediaError for what cannot be; nothing is fetched before all else is checked.
        """
        processing = override_processor(self._processing, request.kwargs or {}, capped=True)
        sources = _named(self._processor.media_of(request.messages), request.hashes)
        if not sources:
            return ()
        self._check_counts(sources)
        tenant = tenant_of(authorization, request.cache_salt)
        return await self._loader.load(sources, LoadOptions(tenant=tenant, config=processing, max_tokens=request.max_tokens))

    async def close(self) -> None:
        """End threads and connections."""
        await self._loader.close()

    def _check_counts(self, sources: Sequence[MediaSource]) -> None:
        if not self._processor.accepts_media:
            raise RequestError(f"{sources[0].field} is given, but this model reads text only; leave it out")
        for kind, limit in self._limits_per_prompt.items():
            number = sum(source.kind == kind for source in sources)
            if number > limit:
                raise RequestError(
                    f"messages ({number} {kind}s) may have at most {limit} (--limit-mm-per-prompt of the server); send fewer"
                )


def _named(sources: Sequence[MediaSource], hashes: Sequence[str | None] | None) -> Sequence[MediaSource]:
    """The sources with the names of `mm_hashes`, FastDeploy's older place for a part's `uuid`."""
    if hashes is None:
        return sources
    if len(hashes) != len(sources):
        raise RequestError(
            f"mm_hashes ({len(hashes)}) must have one text or null for each picture of messages ({len(sources)}), in order"
        )
    named = []
    for index, (source, name) in enumerate(zip(sources, hashes, strict=True)):
        if name is not None and not 0 < len(name) <= MAX_UUID_CHARACTERS:
            raise RequestError(f"mm_hashes[{index}] must be a text of 1 to {MAX_UUID_CHARACTERS} characters, or null")
        if name is not None and source.uuid is not None and name != source.uuid:
            raise RequestError(f"mm_hashes[{index}] ({name[:80]!r}) and the uuid of {source.field} disagree; send one of them")
        named.append(source if name is None else source._replace(uuid=name))
    return named
