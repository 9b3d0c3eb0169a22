"""Opens images and videos that users send, under limits.

Knows nothing about patches, text or models.
"""

import io
import re
from typing import Any

from PIL import Image, ImageOps

from ernie45.config.errors import MediaError, MediaFormatError, MediaSizeError
from ernie45.processor.source import MediaLimits, describe, read_bytes
from ernie45.processor.video import Video, load_video, sniff_container

__all__ = ["IMAGE_FORMATS", "MediaLimits", "Video", "load_image", "load_video"]

# Formats PIL may try, by content. Left out are those that start other programs (EPS runs Ghostscript) or are no pictures.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000")
# How their files begin. DIB begins with the length of its header.
_IMAGE_STARTS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        *(rb"\xff\xd8\xff", rb"\x89PNG\r\n\x1a\n", rb"GIF8[79]a", rb"RIFF....WEBP", rb"BM", rb"[\x0c\x28\x40\x6c\x7c]\0\0\0"),
        *(rb"II[*+]\0", rb"MM\0[*+]", rb"....ftyp(?:avi[fs]|mi[af]1|msf1)", rb"P[1-7FfyRx][\s0-9]", rb"\0\0[\1\2]\0"),
        *(rb"\0\0\0\x0cjP  ", rb"\xffO\xffQ"),
    )
)


def check_image_start(data: bytes, source: Any, field: str) -> None:
    """MediaFormatError if a file that begins like this is no image in a known format."""
    if not any(pattern.match(data) for pattern in _IMAGE_STARTS):
        raise MediaFormatError(
            f"{field} ({describe(source)}) is not an image in a known format ({', '.join(IMAGE_FORMATS)}): it "
            f"{_looks_like(data)}; convert it"
        )


def _looks_like(data: bytes) -> str:
    """For someone who sent the wrong file."""
    if sniff_container(data):
        return "is a video, which goes into a part of type video_url"
    start = data[:64].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, perhaps one that shows the picture"
    if start.startswith((b"<svg", b"<?xml")):
        return "is SVG or XML"
    return "is text" if data and all(byte >= 32 or byte in b"\t\n\r\f" for byte in data[:256]) else f"begins with {data[:8]!r}"


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
    check_image_start(data, source, field)
    Image.init()  # registers all formats; without it `open` knows the few commonest and fails on the names of others
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        _check_size(image, limits, field)
        image.load()
        return ImageOps.exif_transpose(image)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaSizeError(
            f"{field} has far more than the limit of {limits.max_image_pixels} pixels; scale it down before sending"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{field} ({describe(source)}) is cut off or damaged in its header; send the whole file") from error
    except Exception as error:  # PIL's decoders raise almost anything for a damaged file
        raise MediaError(f"{field} ({describe(source)}) is a damaged or cut-off image: {error}; send the whole file") from error


def _check_size(image: Image.Image, limits: MediaLimits, field: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{field} has the size {width}x{height}, no pixels; send a picture of at least 1x1")
    if width * height > limits.max_image_pixels:
        raise MediaSizeError(
            f"{field} has the size {width}x{height}, over the limit of {limits.max_image_pixels} pixels; "
            "scale it down before sending"
        )
