"""Rollouts as batches: prompt and answer as one sequence each, packed, with what the policy objective must know of every token.

Knows nothing about engines, rewards or losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.inputs import ModelInput
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.model.batch import PackedBatch, pack


class PolicyItem(NamedTuple):
    """One sequence of a batch; arrays fp32, one number for each of its N labels in order, None where not known.

    weight: what each of its labels counts in the policy loss of the whole step; 0: only the pair term looks at it.
    engine_N: log-probabilities by the engine that drew the tokens; old_N: by the trainer before the first update from this
    rollout; reference_N: by the reference model. values_N, returns_N: what the critic said, and what it should have said.
    experts: int16 [S, L, A] to replay.
    """

    labelled: Labelled
    weight: float
    advantages_N: np.ndarray
    engine_N: np.ndarray | None = None
    old_N: np.ndarray | None = None
    reference_N: np.ndarray | None = None
    values_N: np.ndarray | None = None
    returns_N: np.ndarray | None = None
    experts: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyBatch:
    """One shard of a step: B packed sequences of which R rows have a label.

    rows_R: rows of the packed tokens with a label; labels_R; sequence_R: their sequence, 0 ... B - 1 in the order of packing.
    weights_R and the others as in `PolicyItem`, zeros where a sequence has none; old_R, reference_R, values_R and returns_R are
    None where none has. pairs_Q2: (better, worse) sequences. pair_weight: 1 / pairs of the step; token_weight: 1 / labels of
    all better ones; share: of the shard, in what is averaged over shards.
    """

    packed: PackedBatch
    rows_R: Tensor
    labels_R: Tensor
    sequence_R: Tensor
    num_sequences: int
    weights_R: Tensor
    advantages_R: Tensor
    engine_R: Tensor
    old_R: Tensor | None
    reference_R: Tensor | None
    values_R: Tensor | None
    returns_R: Tensor | None
    pairs_Q2: Tensor
    pair_weight: float
    token_weight: float
    share: float


class PairPlaces(NamedTuple):
    """Which items of a shard are pairs, (better, worse) each, and what they count in the step."""

    pairs: Sequence[tuple[int, int]] = ()
    pair_weight: float = 0.0
    token_weight: float = 0.0


def continued(inputs: ModelInput, token_ids: np.ndarray) -> Labelled:
    """A prompt with its answer, whose tokens are the labels. The last token is only a label: nothing follows it."""
    shown = token_ids[:-1]
    places = np.arange(inputs.next_position, inputs.next_position + len(shown))
    labels_S = np.full(len(inputs) + len(shown), IGNORED, dtype=np.int64)
    labels_S[len(inputs) - 1 :] = token_ids
    whole = replace(
        inputs,
        token_ids=np.concatenate([inputs.token_ids, shown]),
        is_vision=np.concatenate([inputs.is_vision, np.zeros(len(shown), dtype=bool)]),
        positions=np.concatenate([inputs.positions, np.repeat(places[:, None], 3, axis=1)]),
        next_position=inputs.next_position + len(shown),
    )
    return Labelled(whole, labels_S)


def collate_policy(items: Sequence[PolicyItem], share: float, pairs: PairPlaces | None = None) -> PolicyBatch:
    """Pack at least one sequence, those with pictures of one shape and of one length side by side."""
    pairs = pairs or PairPlaces()
    order = _packing_order(items)
    place = {number: position for position, number in enumerate(order)}
    ordered = [items[number] for number in order]
    labels = np.concatenate([item.labelled.labels_S for item in ordered])
    rows = np.flatnonzero(labels != IGNORED)
    counts = [item.labelled.num_labels for item in ordered]
    packed = pack([item.labelled.inputs for item in ordered])
    if any(item.experts is not None for item in ordered):
        packed = replace(packed, experts_TLA=_experts(ordered))
    return PolicyBatch(
        packed=packed,
        rows_R=torch.from_numpy(rows),
        labels_R=torch.from_numpy(labels[rows]),
        sequence_R=torch.from_numpy(np.repeat(np.arange(len(items)), counts)),
        num_sequences=len(items),
        weights_R=torch.from_numpy(np.repeat(np.array([item.weight for item in ordered], dtype=np.float32), counts)),
        advantages_R=torch.from_numpy(np.concatenate([item.advantages_N for item in ordered]).astype(np.float32)),
        engine_R=_filled([item.engine_N for item in ordered], counts),
        old_R=_joined([item.old_N for item in ordered], counts),
        reference_R=_joined([item.reference_N for item in ordered], counts),
        values_R=_joined([item.values_N for item in ordered], counts),
        returns_R=_joined([item.returns_N for item in ordered], counts),
        pairs_Q2=torch.tensor([[place[a], place[b]] for a, b in pairs.pairs], dtype=torch.int64).view(-1, 2),
        pair_weight=pairs.pair_weight,
        token_weight=pairs.token_weight,
        share=share,
    )


def split_rows(items: Sequence[PolicyItem], values_R: Tensor) -> list[np.ndarray]:
    """A number for each row as one array for each item, in the order in which `collate_policy` was given them."""
    order = _packing_order(items)
    parts = values_R.float().split([items[number].labelled.num_labels for number in order])
    by_number = dict(zip(order, parts, strict=True))
    return [by_number[number].numpy() for number in range(len(items))]


def _packing_order(items: Sequence[PolicyItem]) -> list[int]:
    inputs = [item.labelled.inputs for item in items]
    return sorted(range(len(items)), key=lambda i: ([medium.grid for medium in inputs[i].media], len(inputs[i])))


def _joined(parts: Sequence[np.ndarray | None], counts: Sequence[int]) -> Tensor | None:
    return None if all(part is None for part in parts) else _filled(parts, counts)


def _filled(parts: Sequence[np.ndarray | None], counts: Sequence[int]) -> Tensor:
    filled = [np.zeros(count) if part is None else part for part, count in zip(parts, counts, strict=True)]
    return torch.from_numpy(np.concatenate(filled).astype(np.float32))


def _experts(items: Sequence[PolicyItem]) -> Tensor:
    like = next(item.experts for item in items if item.experts is not None)
    parts = [
        np.full((len(item.labelled.inputs), *like.shape[1:]), -1, dtype=np.int16) if item.experts is None else item.experts
        for item in items
    ]
    return torch.from_numpy(np.concatenate(parts))
