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

MIN_SIZE, MAX_SIZE = 22, 28

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
        return [Mark(str(digit.label), digit.x, digit.y, 0.42 * digit.size, 0.57 * digit.size) for digit in self.digits]

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

    def strip(self, rng: Random, num_digits: int) -> Strip:
        """A strip of 1 to 4 digits, each in a cell of its own: one visual token shows one digit."""
        palette = random_palette(rng)
        ink_HW = np.zeros((CELL, num_digits * CELL), dtype=np.uint8)
        placed = []
        for place in range(num_digits):
            index = rng.randrange(len(self._labels))
            size = rng.randint(MIN_SIZE, MAX_SIZE)
            slack = CELL - size
            x, y = place * CELL + rng.randint(0, slack), rng.randint(0, slack)
            ink_HW[y : y + size, x : x + size] = digit_mask(rng, self._image(rng, index), size, self._distort)
            placed.append(Placed(self._labels[index], x + size / 2, y + size / 2, size))
        return Strip(blend(blank(rng, 1, num_digits, palette.paper), ink_HW, palette.ink), tuple(placed))

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
            strips = [self.strip(rng, 1) for _ in range(num_digits)]
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
        first = self.strip(rng, rng.randint(1, 2))
        second = self.strip(rng, rng.randint(1, 2))
        while second.number == first.number:
            second = self.strip(rng, rng.randint(1, 2))
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
