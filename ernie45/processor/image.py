"""From a decoded picture to uint8 patches: RGB conversion, resizing, patch order.

Knows nothing about where a picture came from, text or videos as files.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from ernie45.config.errors import MediaError
from ernie45.config.processor import ProcessorConfig

MAX_ASPECT = 200


class Patches(NamedTuple):
    """patches_PC uint8 [frames * h * w, channels * patch ** 2] and grid (frames, h, w) in patches."""

    patches_PC: np.ndarray
    grid: tuple[int, int, int]


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, field: str = "picture"
) -> tuple[int, int]:
    """The size (height, width) a picture is resized to: multiples of `factor`, min_pixels <= area <= max_pixels.

    Baidu's rule. Sides are rounded half to even, at least one factor. A side over 200 times the other is cut to 200 times
    the other's rounded length (the picture is squeezed, not cropped). MediaError if the limits leave no such size.
    """
    given = f"{width}x{height}"
    if max(height, width) > MAX_ASPECT * min(height, width):
        height, width = _clamp_aspect(height, width, factor)
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    if not min_pixels <= new_height * new_width <= max_pixels:
        raise MediaError(
            f"{field} has the size {given}, which cannot be brought to sides in steps of {factor} with {min_pixels} to "
            f"{max_pixels} pixels in all; crop it to a less extreme shape"
        )
    return new_height, new_width


def _clamp_aspect(height: int, width: int, factor: int) -> tuple[int, int]:
    short = max(factor, round(min(height, width) / factor) * factor)
    long = short * MAX_ASPECT // factor * factor
    return (long, short) if height > width else (short, long)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as Baidu's preprocessing makes it: transparent pixels on white, 16 bits scaled by 1/256, else PIL's conversion.

    Alpha covers RGBA, LA, PA and palettes or greys with a transparent colour. CMYK, YCbCr, LAB and HSV go through PIL's own
    formulas (no colour profile is applied).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
        return white
    return image.convert("RGB")


def patchify(pixels_HWC: np.ndarray, patch_size: int, merge_size: int) -> np.ndarray:
    """uint8 [H, W, C] to patches [H/p * W/p, C * p * p]; sides are multiples of p * m.

    Order: the m x m patches that become one token are neighbours, tokens are row-major; inside a patch channel comes first.
    """
    height, width, channels = pixels_HWC.shape
    step = patch_size * merge_size
    blocks = pixels_HWC.reshape(height // step, merge_size, patch_size, width // step, merge_size, patch_size, channels)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels * patch_size**2)


def resize(image: Image.Image, config: ProcessorConfig, kind: str = "image", field: str = "picture") -> Image.Image:
    """Bicubic resize to `smart_resize` under the pixel limits of kind "image" or "video"."""
    low, high = (getattr(config, f"{kind}_{end}_pixels") for end in ("min", "max"))
    height, width = smart_resize(image.height, image.width, config.factor, low, high, field)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def image_patches(image: Image.Image, config: ProcessorConfig, field: str = "image") -> Patches:
    """Patches of one image; its grid has one frame."""
    resized = resize(to_rgb(image), config, "image", field)
    patches_PC = patchify(np.asarray(resized), config.patch_size, config.merge_size)
    return Patches(patches_PC, (1, resized.height // config.patch_size, resized.width // config.patch_size))


def content_hash(patches: Patches) -> str:
    """Hex SHA-256 over grid and patches: equal for equal pictures, whatever file they came in."""
    digest = hashlib.sha256(np.asarray(patches.grid, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(patches.patches_PC).data)
    return digest.hexdigest()
