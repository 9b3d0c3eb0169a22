"""Empty pictures with varied backgrounds, and handwritten digits as ink masks of any size.

Knows nothing about questions, tokens or where a digit comes from.
"""

import functools
import math
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

CELL = 28
"""Pixels on a side of one visual token."""

Colour = tuple[int, int, int]

_MARGIN = 1  # empty source pixels around a digit, so that interpolation at its border meets paper


class Mark(NamedTuple):
    """Something a picture shows: its name, its centre in pixels from the top left, and how far its body goes from there."""

    name: str
    x: float
    y: float
    half_width: float
    half_height: float


class Palette(NamedTuple):
    """Paper and ink of one picture, far enough apart in brightness to read."""

    paper: Colour
    ink: Colour


def random_palette(rng: Random) -> Palette:
    """Dark ink on light paper four times in five, else the reverse; each with a slight tint."""
    light = _tinted(rng, rng.randint(200, 250))
    dark = _tinted(rng, rng.randint(5, 70))
    return Palette(light, dark) if rng.random() < 0.8 else Palette(dark, light)


def blank(rng: Random, rows: int, columns: int, paper: Colour) -> np.ndarray:
    """float32 [rows * 28, columns * 28, 3]: paper with a slight slope of brightness and grain."""
    height, width = rows * CELL, columns * CELL
    slope_down, slope_across = rng.uniform(-14, 14), rng.uniform(-14, 14)
    ramp_HW = np.linspace(-slope_down, slope_down, height, dtype=np.float32)[:, None]
    ramp_HW = ramp_HW + np.linspace(-slope_across, slope_across, width, dtype=np.float32)
    grain = _grain()
    top, left = rng.randrange(grain.shape[0] - height), rng.randrange(grain.shape[1] - width)
    ramp_HW += rng.uniform(0, 1) * grain[top : top + height, left : left + width]
    return np.array(paper, dtype=np.float32) + ramp_HW[:, :, None]


def blend(canvas_HWC: np.ndarray, ink_HW: np.ndarray, ink: Colour) -> np.ndarray:
    """uint8 picture: `ink` laid over the canvas with opacity ink_HW (0 to 255)."""
    opacity = ink_HW.astype(np.float32)[:, :, None] / 255
    mixed = canvas_HWC + (np.array(ink, dtype=np.float32) - canvas_HWC) * opacity
    return np.clip(mixed, 0, 255).astype(np.uint8)


def digit_mask(rng: Random, image_HW: np.ndarray, size: int, distort: bool) -> np.ndarray:
    """One 8 x 8 digit as opacity uint8 [size, size].

    distort: turn (12 degrees), slant, stretch, bend and thicken it at random. Training wants that, or the few real digits are
    learnt by heart; pictures for scores show the digits as they were written.
    """
    corners = _distorted_corners(rng) if distort else _CORNERS
    gain, paper = (rng.uniform(0.8, 1.7), rng.randint(6, 40)) if distort else (1.15, 12)
    source = Image.fromarray(np.pad(image_HW, _MARGIN) * np.uint8(15))
    quad = [value + 4 + _MARGIN for corner in corners for value in corner]
    mask = source.transform((size, size), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    return np.asarray(mask.point(_contrast(round(gain * 20), paper)))


_HALF = (8 + 2 * _MARGIN - 1) / 2
_CORNERS = ((-_HALF, -_HALF), (-_HALF, _HALF), (_HALF, _HALF), (_HALF, -_HALF))  # of a digit from its centre, in PIL's order


def _distorted_corners(rng: Random) -> list[tuple[float, float]]:
    """Where the corners of the result lie in the source: a random affine map, and each corner moved a little by itself."""
    angle, slant = math.radians(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    wide, high = rng.uniform(0.85, 1.22), rng.uniform(0.88, 1.14)
    cos, sin = math.cos(angle), math.sin(angle)
    corners = []
    for x, y in _CORNERS:
        x, y = wide * (x + slant * y), high * y
        corners.append((cos * x + sin * y + rng.uniform(-0.7, 0.7), cos * y - sin * x + rng.uniform(-0.7, 0.7)))
    return corners


def varied(rng: Random, image_HW: np.ndarray, other_HW: np.ndarray) -> np.ndarray:
    """A digit between two of one label, nearer to the first, with grain: a hand that is in no data set. uint8, 0 to 16."""
    share = rng.uniform(0.55, 1.0)
    grain = _grain()
    top, left = rng.randrange(390), rng.randrange(390)
    mixed = share * image_HW + (1 - share) * other_HW + rng.uniform(0, 0.25) * grain[top : top + 8, left : left + 8]
    return np.clip(np.rint(mixed), 0, 16).astype(np.uint8)


@functools.lru_cache(maxsize=2048)
def _contrast(gain_20: int, paper: int) -> list[int]:
    return [min(255, max(0, int((value - paper) * gain_20 / 20))) for value in range(256)]


@functools.lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 6, (400, 400)).astype(np.float32)


def _tinted(rng: Random, level: int) -> Colour:
    red, green, blue = (min(255, max(0, level + rng.randint(-18, 18))) for _ in range(3))
    return (red, green, blue)
