"""Opens images and videos that users send, under limits.

Knows nothing about patches, text or models.
"""

import io
from typing import Any

from PIL import Image, ImageOps

from ernie45.config.errors import MediaError
from ernie45.processor.source import MediaLimits, describe, read_bytes
from ernie45.processor.video import Video, load_video

__all__ = ["IMAGE_FORMATS", "MediaLimits", "Video", "load_image", "load_video"]

# Formats PIL may try, by content. Left out are those that start other programs (EPS runs Ghostscript) or are no pictures.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000")


def load_image(source: Any, limits: MediaLimits | None = None, field: str = "image") -> Image.Image:
    """A picture, fully decoded, in its own mode and size.

    source: a PIL image (taken as it is), bytes, a path, or an address: data:, http(s)://, file:// in an allowed folder.
    The format is found from the content; names and declared types are not looked at. Files are turned upright by their EXIF
    orientation, as transformers' `load_image` does (Baidu's own loader leaves them lying). Of an animated picture the first
    frame is used. MediaError for anything that is no whole picture within the limits.
    """
    limits = limits or MediaLimits()
    if isinstance(source, Image.Image):
        _check_size(source, limits, field)
        return source
    data = read_bytes(source, limits.max_image_bytes, limits, field)
    Image.init()  # registers all formats; without it `open` knows the few commonest and fails on the names of others
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        _check_size(image, limits, field)
        image.load()
        return ImageOps.exif_transpose(image)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"{field} has far more than the limit of {limits.max_image_pixels} pixels; scale it down before sending"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(
            f"{field} ({describe(source)}) is not an image in a known format ({', '.join(IMAGE_FORMATS)}) or is cut off in its "
            "header; convert it or send the whole file"
        ) from error
    except Exception as error:  # PIL's decoders raise almost anything for a damaged file
        raise MediaError(f"{field} ({describe(source)}) is a damaged or cut-off image: {error}; send the whole file") from error


def _check_size(image: Image.Image, limits: MediaLimits, field: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{field} has the size {width}x{height}, no pixels; send a picture of at least 1x1")
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{field} has the size {width}x{height}, over the limit of {limits.max_image_pixels} pixels; "
            "scale it down before sending"
        )
