"""Real handwritten digits for training: the first 1,437 of the 1,797 in scikit-learn's `load_digits`.

Knows nothing about the held-out digits: those are other members of the same archive, and the only code that opens them is
`ernie45.evals.heldout`, which nothing that trains may import (the layers forbid it).

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49 (CC BY 4.0). The split is by index block and not by chance: digits were collected writer by
writer, so neighbours in the file are by one hand and a random split would put the same hand on both sides.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ernie45.config.errors import DataError

ARCHIVE = Path(__file__).parents[2] / "assets" / "digits.npz"
NUM_TRAINING = 1437
NUM_FIT = 1149

Part = Literal["all", "fit", "validation"]


@dataclass(frozen=True)
class DigitSet:
    """images_NHW uint8 [N, 8, 8] with values 0 to 16 (16 is ink), labels_N int64 [N]."""

    images_NHW: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)


def training_digits(part: Part = "all") -> DigitSet:
    """The digits that training may see.

    part: "all" for the recipe; "fit" (the first 1,149) and "validation" (the last 288) to choose between recipes without
    looking at held-out digits.
    """
    spans = {"all": slice(None), "fit": slice(NUM_FIT), "validation": slice(NUM_FIT, None)}
    if part not in spans:
        raise DataError(f"part of the digits ({part!r}) must be one of {', '.join(spans)}")
    digits = read_members("training")
    return DigitSet(digits.images_NHW[spans[part]], digits.labels_N[spans[part]])


def read_members(prefix: str) -> DigitSet:
    """The archive's members `<prefix>_images` and `<prefix>_labels`; others are not read."""
    with np.load(ARCHIVE) as archive:
        return DigitSet(archive[f"{prefix}_images"], archive[f"{prefix}_labels"].astype(np.int64))
