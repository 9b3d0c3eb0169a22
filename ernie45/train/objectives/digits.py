"""The vision tower's first objective: every visual token says which handwritten digit it shows and at which place.

Knows nothing about language.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie45.data.tiny.batches import NUM_DIGIT_CLASSES, NUM_PLACES, DigitBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.loss import Loss


class DigitHead(nn.Module):
    """A linear head on the resampler's output [R, D]: digit logits (10, and none) and place logits (1 to 4, and none)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, NUM_DIGIT_CLASSES + NUM_PLACES)

    def forward(self, features_RD: Tensor) -> tuple[Tensor, Tensor]:
        digits_RV, places_RV = self.proj(features_RD).split((NUM_DIGIT_CLASSES, NUM_PLACES), dim=-1)
        return digits_RV, places_RV


class DigitOutputs(NamedTuple):
    """Logits of each visual token: digits_RV [R, 11] and places_RV [R, 5]."""

    digits_RV: Tensor
    places_RV: Tensor


def digit_forward(model: ErnieModel, head: DigitHead, batch: DigitBatch) -> DigitOutputs:
    """Tower, resampler and head."""
    return DigitOutputs(*head(model.encode_vision(batch.vision)))


def digit_loss(outputs: DigitOutputs, batch: DigitBatch, config: object = None) -> Loss:
    """Sum of the two cross entropies, averaged over visual tokens. Accuracy counts tokens that show a digit."""
    digits_R, places_R = batch.digits_R, batch.places_R
    loss = F.cross_entropy(outputs.digits_RV, digits_R) + F.cross_entropy(outputs.places_RV, places_R)
    shown_R = digits_R < NUM_DIGIT_CLASSES - 1
    right_R = (outputs.digits_RV.detach().argmax(-1) == digits_R) & shown_R
    placed_R = (outputs.places_RV.detach().argmax(-1) == places_R) & shown_R
    count = int(torch.count_nonzero(shown_R))
    metrics: dict[str, tuple[Tensor | float, float]] = {
        "loss": (loss.detach() * len(digits_R), len(digits_R)),
        "accuracy": (right_R.sum(), count),
        "place_accuracy": (placed_R.sum(), count),
    }
    return Loss(loss, metrics)
