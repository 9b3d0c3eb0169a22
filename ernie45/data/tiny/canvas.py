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

    distort: turn (10 degrees), slant, stretch and thicken it at random. Training wants that, or the few real digits are learnt
    by heart; pictures for scores show the digits as they were written.
    """
    a, b, c, d = _distortion(rng) if distort else (1.0, 0.0, 0.0, 1.0)
    gain = rng.uniform(0.9, 1.5) if distort else 1.15
    step = (8 + 2 * _MARGIN - 1) / size
    source = Image.fromarray(np.pad(image_HW, _MARGIN) * np.uint8(15))
    centre_in, centre_out = 4 + _MARGIN, size / 2
    matrix = (
        a * step,
        b * step,
        centre_in - (a + b) * step * centre_out,
        c * step,
        d * step,
        centre_in - (c + d) * step * centre_out,
    )
    mask = source.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(mask.point(_contrast(round(gain * 20))))


def _distortion(rng: Random) -> tuple[float, float, float, float]:
    angle, slant = math.radians(rng.uniform(-10, 10)), rng.uniform(-0.15, 0.15)
    wide, high = rng.uniform(0.9, 1.18), rng.uniform(0.92, 1.1)
    cos, sin = math.cos(angle), math.sin(angle)
    return (wide * cos, wide * (sin + slant * cos), -high * sin, high * (cos - slant * sin))


@functools.lru_cache(maxsize=64)
def _contrast(gain_20: int) -> list[int]:
    return [min(255, max(0, int((value - 12) * gain_20 / 20))) for value in range(256)]


@functools.lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 6, (400, 400)).astype(np.float32)


def _tinted(rng: Random, level: int) -> Colour:
    red, green, blue = (min(255, max(0, level + rng.randint(-18, 18))) for _ in range(3))
    return (red, green, blue)
