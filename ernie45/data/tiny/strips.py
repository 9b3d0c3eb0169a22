"""Pictures of handwritten digits in a row, and the questions about them: read, add, compare, describe.

Knows nothing about which digits are held out: it composes whatever set it is given.
"""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from ernie45.data.tiny.canvas import CELL, Mark, blank, blend, digit_mask, random_palette, varied
from ernie45.data.tiny.digits import DigitSet
from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.sums import compared, running_sum

MIN_SIZE, MAX_SIZE = 34, 50
# Sizes of a strip's picture in cells (rows, columns) by its number of digits. The first list is made of small pictures, the
# second of those that an enlarged copy comes back to when the processor shrinks it to 16 cells.
_SMALL = {1: ((2, 2),), 2: ((2, 3), (2, 4)), 3: ((2, 4), (2, 5)), 4: ((2, 5), (2, 6))}
_FULL = {
    1: ((4, 4), (3, 4), (3, 5)),
    2: ((3, 4), (2, 6), (3, 5), (4, 4)),
    3: ((2, 6), (2, 7), (3, 5), (3, 4)),
    4: ((2, 7), (2, 8), (3, 5), (2, 6)),
}

_READ = ("Read the digits.", "What number is shown?", "Which digits are these?")
_SUM = ("Add the digits.", "What is the sum of the digits?", "What do the digits add up to?")
_SUM_PICTURES = ("Add the digits of all pictures.", "What is the sum over all pictures?")
_LARGER = ("Which picture has the larger number?", "Where is the larger number?")
_LARGEST = ("What is the largest digit?", "Which digit is the largest?")
_SMALLEST = ("What is the smallest digit?", "Which digit is the smallest?")
DESCRIBE = ("Describe the picture.", "What is in the picture?", "Describe this image.")


class Placed(NamedTuple):
    """Where a digit of a strip is, in pixels from the picture's top left: its centre, and its side."""

    label: int
    x: float
    y: float
    size: int


@dataclass(frozen=True)
class Strip:
    """A picture uint8 [H, W, 3] of digits in a row, from left to right."""

    picture_HWC: np.ndarray
    digits: tuple[Placed, ...]

    @property
    def marks(self) -> list[Mark]:
        """A written digit's body is taken as 0.84 of its square's side wide and 1.14 high: a little more than its ink."""
        return [
            Mark(str(digit.label), place, digit.x, digit.y, 0.42 * digit.size, 0.57 * digit.size)
            for place, digit in enumerate(self.digits, 1)
        ]

    @property
    def labels(self) -> list[int]:
        return [digit.label for digit in self.digits]

    @property
    def number(self) -> int:
        return int("".join(map(str, self.labels)))


class StripWriter:
    """Writes strips from one set of digits. distort: see `digit_mask` and `varied`."""

    def __init__(self, digits: DigitSet, distort: bool = True) -> None:
        self._images = digits.images_NHW
        self._labels = digits.labels_N.tolist()
        self._distort = distort
        self._alike = [np.flatnonzero(digits.labels_N == label).tolist() for label in range(10)]

    def strip(self, rng: Random, num_digits: int, small: bool | None = None) -> Strip:
        """A strip of 1 to 4 digits. small: the picture's size class; by chance if None."""
        small = rng.random() < 0.5 if small is None else small
        rows, columns = rng.choice((_SMALL if small else _FULL)[num_digits])
        height, width = rows * CELL, columns * CELL
        size, pitch = _spacing(rng, num_digits, height, width)
        palette = random_palette(rng)
        ink_HW = np.zeros((height, width), dtype=np.uint8)
        left = rng.uniform(0, width - size - pitch * (num_digits - 1))
        top = rng.uniform(0, height - size)
        placed = []
        for place in range(num_digits):
            index = rng.randrange(len(self._labels))
            x = min(width - size, max(0, round(left + place * pitch + rng.uniform(-1.5, 1.5))))
            y = min(height - size, max(0, round(top + rng.uniform(-4, 4))))
            mask = digit_mask(rng, self._image(rng, index), size, self._distort)
            window = ink_HW[y : y + size, x : x + size]
            np.maximum(window, mask, out=window)
            placed.append(Placed(self._labels[index], x + size / 2, y + size / 2, size))
        return Strip(blend(blank(rng, rows, columns, palette.paper), ink_HW, palette.ink), tuple(placed))

    def _image(self, rng: Random, index: int) -> np.ndarray:
        if not self._distort:
            return self._images[index]
        return varied(rng, self._images[index], self._images[rng.choice(self._alike[self._labels[index]])])

    # ---- skills

    def read(self, rng: Random, num_digits: int | None = None) -> Sample:
        """Read a strip in order; 2 to 4 digits unless told."""
        strip = self.strip(rng, num_digits or rng.randint(2, 4))
        return _about(rng, "read", [strip], _reading(rng, strip))

    def sum(self, rng: Random, num_digits: int, apart: bool | None = None) -> Sample:
        """Add 2 to 4 digits: of one strip, or (apart) of as many pictures with one digit each. By chance if None."""
        apart = rng.random() < 0.3 if apart is None else apart
        if apart:
            strips = [self.strip(rng, 1, small=rng.random() < 0.8) for _ in range(num_digits)]
            question = rng.choice(_SUM_PICTURES)
        else:
            strips, question = [self.strip(rng, num_digits)], rng.choice(_SUM)
        labels = [label for strip in strips for label in strip.labels]
        turn = Turn(question=question, reasoning=f"{_listed(labels)}\n{running_sum(labels)}", answer=str(sum(labels)))
        return _about(rng, f"sum{num_digits}", strips, turn)

    def compare(self, rng: Random) -> Sample:
        """Which of two pictures has the larger number, or which digit of a strip is the largest or smallest."""
        if rng.random() < 0.5:
            strip = self.strip(rng, rng.randint(2, 4))
            return _about(rng, "compare", [strip], _extreme(rng, strip))
        first = self.strip(rng, rng.randint(1, 2), small=True)
        second = self.strip(rng, rng.randint(1, 2), small=True)
        while second.number == first.number:
            second = self.strip(rng, rng.randint(1, 2), small=True)
        thought = f"Picture 1:{first.number}\nPicture 2:{second.number}\n{compared(first.number, second.number)}"
        answer = f"Picture {1 if first.number > second.number else 2}"
        return _about(rng, "compare", [first, second], Turn(question=rng.choice(_LARGER), reasoning=thought, answer=answer))

    def describe(self, rng: Random) -> Sample:
        """A caption of a strip."""
        strip = self.strip(rng, rng.randint(1, 4))
        return _about(rng, "caption", [strip], _caption(rng, strip))

    def talk(self, rng: Random) -> Sample:
        """Two questions on one strip; the first answer is given and the second counts."""
        strip = self.strip(rng, rng.randint(2, 3))
        turns = [_reading(rng, strip), _adding(rng, strip), _extreme(rng, strip), _caption(rng, strip)]
        first, second = rng.sample(turns, 2)
        return Sample(skill="talk", turn=second, history=(first,), pictures=(strip.picture_HWC,))


def _spacing(rng: Random, num_digits: int, height: int, width: int) -> tuple[int, float]:
    """A digit's side and the distance from one to the next that fit the picture. Ink is narrower than the square it is in."""
    widest = (width - 2) / (1 + 0.8 * (num_digits - 1))
    size = int(rng.uniform(min(MIN_SIZE, widest), min(MAX_SIZE, widest, height - 2)))
    if num_digits == 1:
        return size, 0.0
    room = (width - size - 2) / (num_digits - 1)
    return size, rng.uniform(min(0.8 * size, room), min(1.15 * size, room))


def _listed(labels: list[int]) -> str:
    return ",".join(map(str, labels))


def _about(rng: Random, skill: str, strips: list[Strip], turn: Turn) -> Sample:
    pictures = tuple(strip.picture_HWC for strip in strips)
    return Sample(skill=skill, turn=turn, pictures=pictures, pictures_first=rng.random() < 0.8)


def _reading(rng: Random, strip: Strip) -> Turn:
    answer = "".join(map(str, strip.labels))
    return Turn(question=rng.choice(_READ), reasoning=_listed(strip.labels), answer=answer)


def _adding(rng: Random, strip: Strip) -> Turn:
    labels = strip.labels
    return Turn(question=rng.choice(_SUM), reasoning=f"{_listed(labels)}\n{running_sum(labels)}", answer=str(sum(labels)))


def _extreme(rng: Random, strip: Strip) -> Turn:
    questions, pick = rng.choice(((_LARGEST, max), (_SMALLEST, min)))
    return Turn(question=rng.choice(questions), reasoning=_listed(strip.labels), answer=str(pick(strip.labels)))


def _caption(rng: Random, strip: Strip) -> Turn:
    digits = " ".join(map(str, strip.labels))
    noun = "digit" if len(strip.labels) == 1 else "digits"
    return Turn(question=rng.choice(DESCRIBE), reasoning=f"{noun}:{_listed(strip.labels)}", answer=f"The {noun} {digits}.")
