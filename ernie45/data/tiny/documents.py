"""Documents for pre-training: the tiny model's samples as plain text with pictures, without roles or a chat template.

Knows nothing about phases, models or losses. Each batch is a pure function of (seed, name, step, shard).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from ernie45.data.labelled import Labelled
from ernie45.data.packing import LanguageBatch, collate, fill, token_balanced_weights
from ernie45.data.tiny.digits import DigitSet
from ernie45.data.tiny.encode import DocumentPart, SampleEncoder
from ernie45.data.tiny.mixture import SOURCES, Mixture
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor import Processor

TEXT_SKILLS = ("arithmetic", "sentence")
"""Those without pictures."""
_ASKED_AGAIN = 0.3


@dataclass(frozen=True, kw_only=True)
class DocumentData:
    """What the batches are made of.

    weights: skill -> share. thinking: share of samples that spell out their answer. shows: step -> whether its documents all
    have pictures (True), none has (False), or as the mixture falls (None). token_budget: of a shard. context: tokens of a
    document that joins samples, some asked about again pages later; 0: a sample a document.
    """

    name: str
    seed: int
    weights: Mapping[str, float]
    thinking: float
    shows: Callable[[int], bool | None]
    blind: bool
    token_budget: int
    context: int
    token_balanced: bool
    num_shards: int


class DocumentBatches:
    """Packed documents about pictures of the given digits, and of text."""

    def __init__(self, data: DocumentData, digits: DigitSet, processor: Processor) -> None:
        """DataError if a kind of batch that alternation asks for has no skill."""
        self._data = data
        writer = StripWriter(digits)
        text = {skill: weight for skill, weight in data.weights.items() if skill in TEXT_SKILLS}
        pictures = {skill: weight for skill, weight in data.weights.items() if skill not in TEXT_SKILLS}
        self._mixtures = {
            shows: Mixture(writer, weights)
            for shows, weights in ((None, data.weights), (False, data.weights if data.blind else text), (True, pictures))
            if weights
        }
        self._encoder = SampleEncoder(processor)

    def __call__(self, step: int, shard: int) -> LanguageBatch:
        data = self._data
        shows = data.shows(step)
        rng = Random(f"{data.seed}/{data.name}/{step}/{shard}")
        items = fill(data.token_budget, lambda _: self._document(shows, rng))
        if data.token_balanced:
            weights = token_balanced_weights(items, data.token_budget * data.num_shards)
        else:
            weights = [1 / (sum(item.num_labels for item in items) * data.num_shards)] * len(items)
        return collate(items, weights, 1 / data.num_shards, (*SOURCES, "long"))

    def _document(self, shows: bool | None, rng: Random) -> Labelled:
        """A sample, or several up to `context` tokens."""
        data = self._data
        parts = [self._part(shows, rng)]
        item = self._encode(parts)
        while len(item.inputs) < data.context:
            parts.append(self._again(parts, rng) or self._part(shows, rng))
            longer = self._encode(parts)
            if len(longer.inputs) > data.context:
                break
            item = longer
        return item

    def _part(self, shows: bool | None, rng: Random) -> DocumentPart:
        sample = self._mixtures[shows].draw(rng)
        while self._data.context and len(sample.pictures) > 1:  # its text counts its own pictures from 1
            sample = self._mixtures[shows].draw(rng)
        return DocumentPart(sample, rng.random() < self._data.thinking, shows=shows is not False)

    def _again(self, parts: list[DocumentPart], rng: Random) -> DocumentPart | None:
        """Now and then, a sample of one picture that was shown before."""
        numbers, shown = {}, 0
        for place, part in enumerate(parts):
            if part.refers_to is None:
                shown += len(part.sample.pictures)
                if len(part.sample.pictures) == 1 and part.shows:
                    numbers[place] = shown
        if not numbers or rng.random() > _ASKED_AGAIN:
            return None
        place = rng.choice(list(numbers))
        return DocumentPart(parts[place].sample, parts[place].thinking, numbers[place])

    def _encode(self, parts: list[DocumentPart]) -> Labelled:
        source = parts[0].sample.skill if len(parts) == 1 else "long"
        return self._encoder.encode_document(parts)._replace(source=source)
