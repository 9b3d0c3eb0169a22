"""The vision tower's first objective: every visual token says what it shows, and its place among the things shown.

Knows nothing about language.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie45.data.tiny.batches import NOTHING, NUM_PLACES, SHOWN, SightBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.loss import Loss


class SightHead(nn.Module):
    """A linear head on the resampler's output [R, D]: logits over `SHOWN` and over places."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, len(SHOWN) + NUM_PLACES)

    def forward(self, features_RD: Tensor) -> tuple[Tensor, Tensor]:
        shown_RV, places_RV = self.proj(features_RD).split((len(SHOWN), NUM_PLACES), dim=-1)
        return shown_RV, places_RV


class SightOutputs(NamedTuple):
    """Logits of each visual token: shown_RV [R, len(SHOWN)] and places_RV [R, NUM_PLACES]."""

    shown_RV: Tensor
    places_RV: Tensor


def sight_forward(model: ErnieModel, head: SightHead, batch: SightBatch) -> SightOutputs:
    """Tower, resampler and head."""
    return SightOutputs(*head(model.encode_vision(batch.vision)))


def sight_loss(outputs: SightOutputs, batch: SightBatch, config: object = None) -> Loss:
    """Sum of the two cross entropies, averaged over visual tokens. Accuracy counts tokens that show something."""
    shown_R, places_R = batch.shown_R, batch.places_R
    loss = F.cross_entropy(outputs.shown_RV, shown_R) + F.cross_entropy(outputs.places_RV, places_R)
    filled_R = shown_R != NOTHING
    right_R = (outputs.shown_RV.detach().argmax(-1) == shown_R) & filled_R
    placed_R = (outputs.places_RV.detach().argmax(-1) == places_R) & filled_R
    count = int(torch.count_nonzero(filled_R))
    metrics: dict[str, tuple[Tensor | float, float]] = {
        "loss": (loss.detach() * len(shown_R), len(shown_R)),
        "accuracy": (right_R.sum(), count),
        "place_accuracy": (placed_R.sum(), count),
    }
    return Loss(loss, metrics)
