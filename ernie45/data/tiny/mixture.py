"""Which skills the tiny model learns and how often, and sampling from them.

Knows nothing about tokens, batches or steps.
"""

from collections.abc import Callable, Mapping
from random import Random

from ernie45.config.errors import DataError
from ernie45.data.tiny import charts, scenes, text
from ernie45.data.tiny.sample import Sample
from ernie45.data.tiny.strips import StripWriter

Maker = Callable[[Random], Sample]

SCORED_SKILLS = (
    "read",
    "sum2",
    "sum3",
    "sum4",
    "compare",
    "colour",
    "count",
    "place",
    "chart_value",
    "chart_highest",
    "chart_total",
    "caption",
    "arithmetic",
    "sentence",
)
"""Skills with a score of their own; `talk` (a second question in a conversation) and single digits are trained beside them."""

SOURCES = (*SCORED_SKILLS, "talk")
"""All that `Sample.skill` can be."""


def makers(writer: StripWriter) -> dict[str, Maker]:
    """One function per skill that makes a sample from a random number generator; digits come from the writer's set."""

    def caption(rng: Random) -> Sample:
        return rng.choice((writer.describe, scenes.describe_scene, charts.describe_chart))(rng)

    return {
        "read": writer.read,
        "read1": lambda rng: writer.read(rng, 1),
        "sum2": lambda rng: writer.sum(rng, 2),
        "sum3": lambda rng: writer.sum(rng, 3),
        "sum4": lambda rng: writer.sum(rng, 4),
        "compare": writer.compare,
        "talk": writer.talk,
        "colour": scenes.colour_question,
        "count": scenes.count_question,
        "place": scenes.place_question,
        "chart_value": charts.value_question,
        "chart_highest": charts.highest_question,
        "chart_total": charts.total_question,
        "caption": caption,
        "arithmetic": text.arithmetic,
        "sentence": text.sentence,
    }


class Mixture:
    """Draws samples of several skills. weights: skill -> share, any positive scale; DataError for an unknown skill."""

    def __init__(self, writer: StripWriter, weights: Mapping[str, float]) -> None:
        known = makers(writer)
        unknown = sorted(set(weights) - set(known))
        if unknown:
            raise DataError(f"skill ({unknown[0]!r}) must be one of {', '.join(known)}")
        self._makers = [known[skill] for skill in weights]
        self._weights = list(weights.values())

    def draw(self, rng: Random) -> Sample:
        """One sample; equal generators give equal samples."""
        return rng.choices(self._makers, self._weights)[0](rng)
