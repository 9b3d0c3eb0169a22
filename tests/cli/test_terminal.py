"""What a terminal is taken to show, and pictures made of characters."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from ernie45.commands.picture import MAX_ROWS, render
from ernie45.commands.terminal import Terminal

ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


class FakeStream(io.StringIO):
    """A stream that says it is a terminal, or not, in an encoding."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, is_tty: bool) -> None:
        super().__init__()
        self.tty = is_tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "truecolor"),
        ({"TERM": "xterm-direct"}, "truecolor"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "screen"}, "256"),
        ({"TERM": "linux"}, "none"),
        ({"TERM": "dumb"}, "none"),
        ({}, "none"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "none"),
    ],
)
def test_colours(environment: dict[str, str], colours: str) -> None:
    assert Terminal.of(FakeStream(True), environment).colours == colours
    assert Terminal.of(FakeStream(False), environment).colours == "none"


def test_without_colours_nothing_is_styled() -> None:
    terminal = Terminal()
    assert terminal.bold("x") == terminal.dimmed("x") == "x"


def test_half_blocks_need_an_encoding_that_has_them() -> None:
    stream = FakeStream(True)
    assert Terminal.of(stream, {"TERM": "xterm"}).blocks
    stream.encoding = "latin-1"  # type: ignore[assignment]
    assert not Terminal.of(stream, {"TERM": "xterm"}).blocks


def test_true_colours_are_those_of_the_picture() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0] = (255, 0, 10)
    pixels[1] = (0, 200, 0)
    lines = render(
        Image.fromarray(pixels).resize((80, 32), Image.Resampling.NEAREST), Terminal(colours="truecolor", blocks=True)
    )
    first, last = lines.splitlines()[0], lines.splitlines()[-1]
    assert set(ESCAPE.findall(first)) == {"38;2;255;0;10;48;2;255;0;10", "0"}
    assert set(ESCAPE.findall(last)) == {"38;2;0;200;0;48;2;0;200;0", "0"}


@pytest.mark.parametrize(
    ("colour", "code"), [((255, 0, 0), 196), ((0, 0, 0), 16), ((118, 118, 118), 243), ((95, 135, 175), 67)]
)
def test_the_palette_colour_is_the_nearest(colour: tuple[int, int, int], code: int) -> None:
    line = render(Image.new("RGB", (40, 16), colour), Terminal(colours="256", blocks=True)).splitlines()[0]
    assert ESCAPE.findall(line) == [f"38;5;{code};48;5;{code}", "0"]


@pytest.mark.parametrize("terminal", [Terminal(), Terminal(colours="256", blocks=False), Terminal(colours="none", blocks=True)])
def test_without_colour_or_blocks_it_is_plain_ascii(terminal: Terminal) -> None:
    image = Image.new("L", (40, 40), 255)
    image.paste(0, (10, 10, 30, 30))
    text = render(image, terminal)
    assert text.isascii()
    assert "\x1b" not in text
    assert "@" in text  # the dark square on light ground is what is drawn


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1000, 3), (640, 480), (28, 28)])
@pytest.mark.parametrize("colours", ["truecolor", "256", "none"])
def test_any_picture_fits(size: tuple[int, int], colours: str) -> None:
    terminal = Terminal(colours=colours, blocks=True, columns=60)  # type: ignore[arg-type]
    lines = ESCAPE.sub("", render(Image.new("RGB", size, (9, 99, 199)), terminal)).splitlines()
    assert 1 <= len(lines) <= MAX_ROWS
    assert max(map(len, lines)) <= 60
