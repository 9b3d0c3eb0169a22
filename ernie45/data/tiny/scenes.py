"""Pictures of a few coloured shapes, and questions about colour, count and place.

Knows nothing about digits or tokens.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from ernie45.data.tiny.canvas import CELL, Colour, Mark, blank
from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.strips import DESCRIBE

SHAPES = ("circle", "square", "triangle")
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (45, 90, 220),
    "yellow": (240, 200, 30),
    "purple": (150, 60, 190),
}
THING_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
_SIZES = ((2, 2), (2, 3), (3, 2), (3, 3))
_WORDS = ("", "a", "two", "three", "four")
_RELATIONS = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}
_AXES = {name: pair for pair in (("left of", "right of"), ("above", "below")) for name in pair}


@dataclass(frozen=True)
class Thing:
    """A shape of a colour; x and y are its centre in pixels from the top left, radius is half its width."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture uint8 [H, W, 3] of things, listed row by row and from left to right."""

    picture_HWC: np.ndarray
    things: tuple[Thing, ...]

    @property
    def listing(self) -> str:
        return ", ".join(thing.name for thing in self.things)

    @property
    def marks(self) -> list[Mark]:
        return [Mark(thing.name, thing.x, thing.y, thing.radius, thing.radius) for thing in self.things]


def scene(rng: Random, num_things: int | None = None) -> Scene:
    """A scene of 2 to 4 things, no two of them alike in both colour and shape, each in a cell of its own."""
    rows, columns = rng.choice(_SIZES)
    canvas = blank(rng, rows, columns, _paper(rng))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    cells = [(y, x) for y in range(rows) for x in range(columns)]
    places = sorted(rng.sample(cells, num_things or rng.randint(2, 4)))
    names = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], len(places))
    things = []
    for (row, column), (colour, shape) in zip(places, names, strict=True):
        radius = rng.uniform(8.5, 12.5)
        x = (column + 0.5) * CELL + rng.uniform(-1.5, 1.5)
        y = (row + 0.5) * CELL + rng.uniform(-1.5, 1.5)
        _draw(draw, shape, x, y, radius, _shade(rng, COLOURS[colour]))
        things.append(Thing(colour, shape, x, y, radius))
    return Scene(np.asarray(image), tuple(things))


def colour_question(rng: Random) -> Sample:
    """What colour has the only thing of a shape."""
    while True:
        made = scene(rng)
        shapes = [thing.shape for thing in made.things]
        single = [thing for thing in made.things if shapes.count(thing.shape) == 1]
        if single:
            break
    thing = rng.choice(single)
    question = rng.choice((f"What colour is the {thing.shape}?", f"Which colour has the {thing.shape}?"))
    return _about(rng, "colour", made, question, f"{made.listing}\n{thing.name}", thing.colour)


def count_question(rng: Random) -> Sample:
    """How many things, of a shape or at all."""
    made = scene(rng)
    if rng.random() < 0.25:
        question = rng.choice(("How many shapes are there?", "Count the shapes."))
        return _about(rng, "count", made, question, made.listing, str(len(made.things)))
    shape = rng.choice(SHAPES)
    question = rng.choice((f"How many {shape}s are there?", f"Count the {shape}s."))
    counted = [thing.name for thing in made.things if thing.shape == shape]
    reasoning = f"{made.listing}\n{', '.join(counted) or 'none'}"
    return _about(rng, "count", made, question, reasoning, str(len(counted)))


def place_question(rng: Random) -> Sample:
    """Is one thing left of, right of, above or below another: only where the two are clearly apart on that axis."""
    while True:
        made = scene(rng)
        first, second = rng.sample(made.things, 2)
        relation = rng.choice(list(_RELATIONS))
        along = first.x - second.x if relation.endswith("of") else first.y - second.y
        if abs(along) >= 16:
            break
    true = next(name for name in _AXES[relation] if _RELATIONS[name](first, second))
    thought = f"{first.name} {true} {second.name}"
    question = f"Is the {first.name} {relation} the {second.name}?"
    return _about(rng, "place", made, question, thought, "yes" if true == relation else "no")


def describe_scene(rng: Random) -> Sample:
    """A caption: the things, row by row."""
    made = scene(rng, rng.randint(2, 3))
    names = [f"a {thing.name}" for thing in made.things]
    caption = ", ".join(names[:-1]) + " and " + names[-1]
    return _about(rng, "caption", made, rng.choice(DESCRIBE), f"shapes:{len(names)}", caption[0].upper() + caption[1:] + ".")


def _about(rng: Random, skill: str, made: Scene, question: str, reasoning: str, answer: str) -> Sample:
    turn = Turn(question=question, reasoning=reasoning, answer=answer)
    return Sample(skill=skill, turn=turn, pictures=(made.picture_HWC,), pictures_first=rng.random() < 0.8)


def _paper(rng: Random) -> Colour:
    level = rng.randint(215, 250) if rng.random() < 0.75 else rng.randint(10, 50)
    return (level, level + rng.randint(-5, 5), level + rng.randint(-5, 5))


def _shade(rng: Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, level + rng.randint(-14, 14))) for level in colour)
    return (red, green, blue)


def _draw(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: Colour) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle((x - 0.9 * radius, y - 0.9 * radius, x + 0.9 * radius, y + 0.9 * radius), fill=colour)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=colour)
