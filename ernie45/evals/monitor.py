"""Held-out sets that a training run is scored on as it goes, whole: what trains gets no digit into its hands.

Knows nothing about training. Choose between recipes by `training_digits("validation")`, never by these.
"""

from collections.abc import Callable

from ernie45.data.packing import LanguageBatch
from ernie45.data.records import Pair
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter
from ernie45.evals.heldout import heldout_digits
from ernie45.processor import Processor


def scored_conversations(data: LanguageData, processor: Processor) -> Callable[[int], LanguageBatch]:
    """Batches 0, 1, ... of conversations about held-out digits."""
    batches = LanguageBatches(data, heldout_digits(), processor)
    return lambda number: batches(number, 0)


def scored_pairs(count: int, form_share: float) -> list[Pair]:
    """Preference pairs about held-out digits. form_share: as in `preference_pairs`."""
    return preference_pairs("held out", count, StripWriter(heldout_digits(), distort=False), form_share)
