"""Pictures of records: loaded, or only their size in tokens from the header.

Knows nothing about conversations or files of records.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ernie45.config.errors import MediaError
from ernie45.config.processor import ProcessorConfig
from ernie45.processor.image import smart_resize
from ernie45.processor.loader import load_all
from ernie45.processor.media import IMAGE_FORMATS
from ernie45.processor.media_cache import LoadedMedia
from ernie45.processor.messages import MediaSource
from ernie45.processor.source import MediaLimits, describe, is_download, is_url, read_bytes

_ORIENTATION = 0x0112
_LYING = 5  # orientations from here on swap width and height
_PNG_SIGNATURE = 8
_PNG_NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # what can hold one, in front of the pixels or behind them


def check_addresses(sources: Sequence[MediaSource], allow_remote: bool) -> None:
    """MediaError for a picture on another machine, unless that is allowed."""
    for media in sources:
        if is_download(media.source) and not allow_remote:
            raise MediaError(
                f"{media.field} ({describe(media.source)}) is on another machine; fetch the file before training, or set "
                "data.allow_remote=true"
            )


def load_media(sources: Sequence[MediaSource], config: ProcessorConfig, limits: MediaLimits) -> list[LoadedMedia]:
    """All of them, decoded. MediaError for one that is missing, broken or not allowed."""
    return load_all(sources, config, limits)


def measure_media(sources: Sequence[MediaSource], config: ProcessorConfig, limits: MediaLimits) -> list[LoadedMedia]:
    """The same with patches of zeros that take no memory: images are read up to their size, videos whole.

    MediaError for one that is missing or has no readable header; damage behind it shows only on loading.
    """
    return [_measured(media, config, limits) for media in sources]


def _measured(media: MediaSource, config: ProcessorConfig, limits: MediaLimits) -> LoadedMedia:
    if media.kind == "image" and not is_download(media.source):
        height, width = _image_size(media.source, limits, media.field)
        low, high = config.image_min_pixels, config.image_max_pixels
        height, width = smart_resize(height, width, config.factor, low, high, media.field)
        grid = (1, height // config.patch_size, width // config.patch_size)
    else:
        grid = load_all([media], config, limits)[0].grid
    shape = (grid[0] * grid[1] * grid[2], 3 * config.patch_size**2)
    return LoadedMedia(media.kind, np.broadcast_to(np.zeros((), dtype=np.uint8), shape), grid, "")


def _image_size(source: Any, limits: MediaLimits, field: str) -> tuple[int, int]:
    """Height and width of the picture, upright."""
    if isinstance(source, Image.Image):
        return source.height, source.width
    if isinstance(source, str) and is_url(source):
        source = read_bytes(source, limits.max_image_bytes, limits, field)
    file = source if isinstance(source, str | os.PathLike) else io.BytesIO(source)
    Image.init()
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            lies = _may_lie(image) and image.getexif().get(_ORIENTATION, 1) >= _LYING
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception as error:  # PIL raises almost anything for a damaged header
        raise MediaError(f"{field} ({describe(source)}) is no readable picture: {error}; replace the file") from error


def _may_lie(image: Image.Image) -> bool:
    """Whether there may be an orientation. PIL would decode a whole PNG to look for one; its chunks can be skipped through."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None or "exif" in image.info:
        return True
    file.seek(_PNG_SIGNATURE)
    while len(head := file.read(8)) == 8:
        if head[4:] in _PNG_NOTES:
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False
