"""Preference pairs as batches: both answers behind their own copy of the prompt, packed side by side.

Knows nothing about models, losses or where pairs come from.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.errors import DataError
from ernie45.data.labelled import Labelled
from ernie45.data.packing import LanguageBatch, collate
from ernie45.data.records import Pair, Record
from ernie45.model.batch import PackedBatch


class EncodedPair(NamedTuple):
    """Both conversations with labels on their answers. margin: how much better the chosen one is, in the data's own unit."""

    chosen: Labelled
    rejected: Labelled
    margin: float

    @property
    def key(self) -> str:
        """Changes with anything the model sees: what log-probabilities are stored under."""
        digest = hashlib.sha256()
        for side in (self.chosen, self.rejected):
            for array in (side.inputs.token_ids, side.inputs.positions, side.inputs.patches, side.labels_S):
                digest.update(np.ascontiguousarray(array).tobytes())
                digest.update(str(array.shape).encode())
        return digest.hexdigest()


class PairFacts(NamedTuple):
    """What is kept of a pair that is not in memory. index: in the data set."""

    index: int
    key: str
    chosen_labels: int
    source: str


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """One shard of a step: B pairs as 2 B packed sequences.

    language: its weights are those of the chosen answers' tokens in their mean over the step, 0 on the rejected ones.
    sequence_R: for each labelled row its answer, 2 * pair for the chosen and 2 * pair + 1 for the rejected one.
    last_rows_B2: the row of each answer's last token, the end of its turn.
    reference_B2: log-probabilities of both answers by the reference, where they are known. margins_B: see `EncodedPair`.
    pair_weight: 1 / pairs of the step. token_weight: 1 / labelled tokens of its chosen answers.
    """

    language: LanguageBatch
    sequence_R: Tensor
    last_rows_B2: Tensor
    reference_B2: Tensor | None
    margins_B: Tensor
    pair_weight: float
    token_weight: float

    @property
    def packed(self) -> PackedBatch:
        return self.language.packed

    def __len__(self) -> int:
        return len(self.margins_B)


def encode_pair(pair: Pair, encode: Callable[[Record], Labelled]) -> EncodedPair:
    """Both sides of a pair, checked. encode: a conversation -> tokens and labels on its answer; its errors name the place.

    DataError, with the pair's file and line, for a pair without a prompt, or with sides that are equal to the model.
    """
    if not pair.prompt:
        raise DataError(f"{pair.origin}: prompt is empty; a pair needs the question that both answers are to")
    chosen, rejected = (encode(pair.side(chosen)) for chosen in (True, False))
    if np.array_equal(chosen.inputs.token_ids, rejected.inputs.token_ids):
        raise DataError(f"{pair.origin}: chosen and rejected are equal, which prefers nothing; change one or remove the pair")
    chosen, rejected = (side._replace(source=pair.source) for side in (chosen, rejected))
    return EncodedPair(chosen, rejected, 1.0 if pair.margin is None else pair.margin)


def collate_pairs(pairs: Sequence[EncodedPair], weights: tuple[float, float], share: float) -> PreferenceBatch:
    """Pack pairs into one shard. weights: 1 / pairs and 1 / chosen answers' tokens of the whole step."""
    pair_weight, token_weight = weights
    items = list(enumerate(side for pair in pairs for side in (pair.chosen, pair.rejected)))
    # The order that `collate` gives them too, so that rows can be told apart afterwards.
    items.sort(key=lambda item: ([medium.grid for medium in item[1].inputs.media], len(item[1].inputs)))
    row_weights = [0.0 if place % 2 else token_weight for place, _ in items]
    language = collate([side for _, side in items], row_weights, share)
    places, counts = np.array([place for place, _ in items]), [side.num_labels for _, side in items]
    last_rows = np.empty(len(items), dtype=np.int64)
    last_rows[places] = np.array(language.packed.cu_seqlens[1:]) - 1
    return PreferenceBatch(
        language=language,
        sequence_R=torch.from_numpy(np.repeat(places, counts)),
        last_rows_B2=torch.from_numpy(last_rows.reshape(-1, 2)),
        reference_B2=None,
        margins_B=torch.tensor([pair.margin for pair in pairs]),
        pair_weight=pair_weight,
        token_weight=token_weight,
    )


class PairSet:
    """Pairs that have been looked at once: those that can be used, with their keys and lengths.

    skipped: messages of those that cannot.
    """

    def __init__(self, pairs: Sequence[Pair], encode: Callable[[Record], Labelled], skip_bad: bool) -> None:
        """One pass over all pairs. DataError for a bad one, unless they are skipped, and if none is left."""
        self._pairs, self._encode = pairs, encode
        self.skipped: list[str] = []
        self.facts: list[PairFacts] = []
        for index in range(len(pairs)):
            try:
                encoded = self.load(index)
            except DataError as error:
                if not skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            self.facts.append(PairFacts(index, encoded.key, encoded.chosen.num_labels, encoded.chosen.source))
        if not self.facts:
            raise DataError(f"pairs (0 of {len(pairs)} can be used) must be at least one; {''.join(self.skipped[:1])}")

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, place: int) -> EncodedPair:
        return self.load(self.facts[place].index)

    def load(self, index: int) -> EncodedPair:
        """A pair by its number in the data set, usable or not. DataError as in `encode_pair`."""
        return encode_pair(self._pairs[index], self._encode)


class PairBatches:
    """(step, shard) -> PreferenceBatch: a pure function of the pairs and these settings.

    Each pass over the pairs has an order of its own, from the seed; a step takes the next `pairs_per_step`, and its shards get
    them in turn. reference: log-probabilities [2] by a pair's key, where they are known beforehand.
    """

    def __init__(self, pairs: PairSet, pairs_per_step: int, num_shards: int, seed: int) -> None:
        """DataError if there are fewer pairs than a step takes, or a step takes fewer than it has shards."""
        if len(pairs) < pairs_per_step:
            raise DataError(
                f"pairs ({len(pairs)} usable) must be at least pairs.pairs_per_step ({pairs_per_step}); add pairs or lower it"
            )
        if pairs_per_step < num_shards:
            raise DataError(
                f"pairs.pairs_per_step ({pairs_per_step}) must be at least loop.num_shards ({num_shards}); raise the first"
            )
        self.pairs, self._pairs_per_step, self._num_shards, self._seed = pairs, pairs_per_step, num_shards, seed
        self.reference: dict[str, tuple[float, float]] | None = None
        self._order: tuple[int, list[int]] = (-1, [])

    def __call__(self, step: int, shard: int) -> PreferenceBatch:
        places = self.places(step)
        facts = [self.pairs.facts[place] for place in places]
        weights = (1 / len(places), 1 / sum(fact.chosen_labels for fact in facts))
        own = range(shard, len(places), self._num_shards)
        batch = collate_pairs([self.pairs[places[index]] for index in own], weights, 1 / self._num_shards)
        if self.reference is None:
            return batch
        known = torch.tensor([self.reference[facts[index].key] for index in own])
        return replace(batch, reference_B2=known)

    def places(self, step: int) -> list[int]:
        """The pairs of a step, by their places in the set."""
        first, size = step * self._pairs_per_step, len(self.pairs)
        return [self._permutation(at // size)[at % size] for at in range(first, first + self._pairs_per_step)]

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self.pairs)))
            Random(f"{self._seed}/pairs/{epoch}").shuffle(order)
            self._order = epoch, order
        return self._order[1]
