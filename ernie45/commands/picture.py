"""Shows a picture with characters: two pixels in each, as coloured half blocks, or shades of ASCII without colour.

Knows nothing about where the picture comes from.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ernie45.commands.terminal import Terminal

MAX_ROWS = 16
_SHADES = " .:-=+*#%@"
_CUBE = np.array([0, 95, 135, 175, 215, 255])  # levels of the 6x6x6 colours from 16 on
_GREYS = 8 + 10 * np.arange(24)  # the greys from 232 on


def render(image: Image.Image, terminal: Terminal) -> str:
    """Lines of at most `terminal.columns` characters, at most MAX_ROWS of them; the aspect ratio is kept."""
    in_colour = terminal.colours != "none" and terminal.blocks
    pixels_HWC = _shrink(image.convert("RGB"), terminal.columns, rows_per_line=2)
    if not in_colour:
        return "\n".join(_ascii_lines(pixels_HWC))
    paint = _truecolor if terminal.colours == "truecolor" else _palette
    return "\n".join(_block_lines(pixels_HWC, paint))


def _shrink(image: Image.Image, columns: int, rows_per_line: int) -> np.ndarray:
    """uint8 [H, W, 3], H even: the picture at a size that fits; small ones are enlarged to be seen."""
    scale = min(columns / image.width, rows_per_line * MAX_ROWS / image.height)
    width = max(1, round(image.width * scale))
    height = max(rows_per_line, round(image.height * scale / rows_per_line) * rows_per_line)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return np.asarray(image.resize((width, height), method))


def _block_lines(pixels_HWC: np.ndarray, paint) -> Iterator[str]:
    for upper_WC, lower_WC in zip(pixels_HWC[0::2], pixels_HWC[1::2], strict=True):
        cells, last = [], ""
        for upper, lower in zip(upper_WC, lower_WC, strict=True):
            code = f"\x1b[38;{paint(upper)};48;{paint(lower)}m"
            cells.append(("" if code == last else code) + "▀")
            last = code
        yield "".join(cells) + "\x1b[0m"


def _truecolor(pixel: np.ndarray) -> str:
    return f"2;{pixel[0]};{pixel[1]};{pixel[2]}"


def _palette(pixel: np.ndarray) -> str:
    """The nearest of the 216 colours and 24 greys."""
    levels = np.abs(pixel[:, None].astype(int) - _CUBE).argmin(axis=1)
    grey = int(np.abs(_GREYS - pixel.mean()).argmin())
    cube_error = np.square(_CUBE[levels] - pixel).sum()
    grey_error = np.square(_GREYS[grey] - pixel.astype(int)).sum()
    return f"5;{232 + grey}" if grey_error < cube_error else f"5;{16 + int(levels @ (36, 6, 1))}"


def _ascii_lines(pixels_HWC: np.ndarray) -> Iterator[str]:
    luminance_HW = pixels_HWC.astype(float) @ (0.299, 0.587, 0.114)
    lines_HW = (luminance_HW[0::2] + luminance_HW[1::2]) / 2
    # Light on dark like most terminals; a picture that is mostly light is inverted, so that its background stays empty.
    if lines_HW.mean() > 127:
        lines_HW = 255 - lines_HW
    indices_HW = (lines_HW / 256 * len(_SHADES)).astype(int)
    for row in indices_HW:
        yield "".join(_SHADES[index] for index in row).rstrip()
