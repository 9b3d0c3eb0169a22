"""A sequence with the token to learn at each place; without torch, for worker processes.

Knows nothing about where sequences come from or how they are packed.
"""

from typing import NamedTuple

import numpy as np

from ernie45.config.inputs import ModelInput

IGNORED = -100


class Labelled(NamedTuple):
    """A sequence and the token to predict at each of its places: labels_S int64 [S], already shifted, IGNORED for none.

    source: the part of a mixture that it belongs to, for metrics.
    """

    inputs: ModelInput
    labels_S: np.ndarray
    source: str = ""

    @property
    def num_labels(self) -> int:
        """How many places have one."""
        return int(np.count_nonzero(self.labels_S != IGNORED))
