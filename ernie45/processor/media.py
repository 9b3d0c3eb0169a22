"""Loads images and videos from where users keep them: objects, paths, bytes, data URLs, http, allowed folders.

Knows nothing about patches, text or models.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ernie45.config.errors import MediaError


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    max_bytes: int = 64 * 2**20


def load_image(source: Any, limits: MediaLimits | None = None, field: str = "image") -> Image.Image:
    """The picture, upright, not yet converted or resized."""
    if isinstance(source, Image.Image):
        return source
    import base64

    if isinstance(source, str) and source.startswith("data:"):
        source = base64.b64decode(source.partition(",")[2])
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        return Image.open(io.BytesIO(data))
    except OSError as error:
        raise MediaError(f"{field}: {error}") from error


def load_video(source: Any, limits: MediaLimits | None = None, field: str = "video") -> Any:
    raise NotImplementedError
