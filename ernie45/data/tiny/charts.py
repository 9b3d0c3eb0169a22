"""Bar charts with three to five labelled bars, and questions: one bar, the highest, the total.

Knows nothing about digits or tokens. Labels are drawn from a 5 x 7 dot alphabet, so that no font file can change the data.
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from ernie45.data.tiny.canvas import CELL, Colour, Mark, blank
from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.strips import DESCRIBE
from ernie45.data.tiny.sums import running_sum

LETTERS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
}
_DOT = 2
_GLYPHS = {
    letter: np.kron(np.array([[int(dot) for dot in row] for row in rows.split()], bool), np.ones((_DOT, _DOT), bool))
    for letter, rows in LETTERS.items()
}
_ROWS = {3: 4, 4: 4, 5: 3}  # of the picture in cells, by the number of bars; each bar has a column of cells to itself
_UNIT = {4: 9, 3: 7}  # pixels for one, by rows
_FOOT = 17  # pixels below the bars, for the labels
_BARS: tuple[Colour, ...] = ((70, 110, 200), (200, 90, 60), (70, 150, 90), (130, 90, 170), (130, 130, 130))


@dataclass(frozen=True)
class Chart:
    """A picture uint8 [H, W, 3]; labels and their values (1 to 9) from left to right."""

    picture_HWC: np.ndarray
    labels: tuple[str, ...]
    values: tuple[int, ...]

    @property
    def listing(self) -> str:
        return ",".join(f"{label}={value}" for label, value in zip(self.labels, self.values, strict=True))

    @property
    def marks(self) -> list[Mark]:
        """A bar's column stands for its value, down to the cell with its label."""
        height = self.picture_HWC.shape[0]
        marks = []
        for place, (label, value) in enumerate(zip(self.labels, self.values, strict=True), 1):
            x, bar = (place - 0.5) * CELL, (height - CELL) / 2
            marks.append(Mark(str(value), x, bar, CELL / 2, bar))
            marks.append(Mark(label, x, height - CELL / 2, CELL / 2, CELL / 2))
        return marks


def chart(rng: Random) -> Chart:
    """A chart with bars of one colour, a faint line at every unit, and labels in alphabetical order."""
    num_bars = rng.randint(3, 5)
    labels = tuple(sorted(rng.sample(list(LETTERS), num_bars)))
    values = tuple(rng.randint(1, 9) for _ in labels)
    rows = _ROWS[num_bars]
    floor, unit = rows * CELL - _FOOT - 1, _UNIT[rows]
    light = rng.random() < 0.8
    level = rng.randint(225, 252) if light else rng.randint(15, 45)
    canvas = blank(rng, rows, num_bars, (level, level, level))
    line, text = (level - 28, 30) if light else (level + 40, 225)
    canvas[floor - 9 * unit : floor + 1 : unit, 2:-2] = line
    colour = np.array(rng.choice(_BARS), dtype=np.float32) + rng.uniform(-15, 15)
    width = rng.randint(14, 20)
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = place * CELL + CELL // 2
        canvas[floor - value * unit : floor + 1, middle - width // 2 : middle + (width + 1) // 2] = colour
        glyph = _GLYPHS[label]
        box = canvas[floor + 2 : floor + 2 + glyph.shape[0], middle - 5 : middle - 5 + glyph.shape[1]]
        box[glyph] = text
    return Chart(np.clip(canvas, 0, 255).astype(np.uint8), labels, values)


def value_question(rng: Random) -> Sample:
    """The value of one bar."""
    made = chart(rng)
    place = rng.randrange(len(made.labels))
    label = made.labels[place]
    question = rng.choice((f"What is the value of {label}?", f"How high is bar {label}?"))
    value = made.values[place]
    return _about(rng, "chart_value", made, question, f"{made.listing}\n{label}={value}", str(value))


def highest_question(rng: Random) -> Sample:
    """The label of the highest bar; there is only one."""
    while True:
        made = chart(rng)
        if made.values.count(max(made.values)) == 1:
            break
    question = rng.choice(("Which bar is the highest?", "What is the highest bar?"))
    value = max(made.values)
    label = made.labels[made.values.index(value)]
    return _about(rng, "chart_highest", made, question, f"{made.listing}\n{label}={value}", label)


def total_question(rng: Random) -> Sample:
    """The sum of all bars."""
    made = chart(rng)
    question = rng.choice(("What is the total?", "What is the total of all bars?"))
    return _about(rng, "chart_total", made, question, f"{made.listing}\n{running_sum(made.values)}", str(sum(made.values)))


def describe_chart(rng: Random) -> Sample:
    """A caption: every label with its value."""
    made = chart(rng)
    bars = ", ".join(f"{label} {value}" for label, value in zip(made.labels, made.values, strict=True))
    return _about(rng, "caption", made, rng.choice(DESCRIBE), f"bars:{len(made.labels)}", f"A bar chart: {bars}.")


def _about(rng: Random, skill: str, made: Chart, question: str, reasoning: str, answer: str) -> Sample:
    turn = Turn(question=question, reasoning=reasoning, answer=answer)
    return Sample(skill=skill, turn=turn, pictures=(made.picture_HWC,), pictures_first=rng.random() < 0.8)
