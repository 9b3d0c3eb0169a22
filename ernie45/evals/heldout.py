"""The held-out digits: the last 360 of scikit-learn's `load_digits`, for scores only.

Knows nothing about training, and nothing that trains can import it: `train` is on the same layer and `data` below.
"""

from ernie45.data.tiny.digits import DigitSet, read_members


def heldout_digits() -> DigitSet:
    """Digits 1,437 to 1,796: by index block, so by other hands at other times than those of training."""
    return read_members("heldout")
