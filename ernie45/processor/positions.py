"""3-D rope positions (time, height, width) of a sequence of text and media, as pure NumPy.

Knows nothing about token ids, text or pixels.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SPATIAL_MERGE = 2
TEMPORAL_MERGE = 2


class MediaSpan(NamedTuple):
    """Where one item's placeholder tokens begin, and its grid (frames, height, width) in patches before merging."""

    offset: int
    grid: tuple[int, int, int]


class Positions(NamedTuple):
    """positions_SX int64 [S, 3] in the order (time, height, width); next_position is that of the first generated token."""

    positions_SX: np.ndarray
    next_position: int


def merged_grid(grid: tuple[int, int, int], spatial_merge: int = SPATIAL_MERGE) -> tuple[int, int, int]:
    """The grid in tokens. One frame (an image) stays one; otherwise two frames make one token step."""
    frames, height, width = grid
    return (1 if frames == 1 else frames // TEMPORAL_MERGE, height // spatial_merge, width // spatial_merge)


def num_media_tokens(grid: tuple[int, int, int], spatial_merge: int = SPATIAL_MERGE) -> int:
    """How many placeholder tokens an item of that grid takes."""
    time, height, width = merged_grid(grid, spatial_merge)
    return time * height * width


def rope_positions(num_tokens: int, spans: Iterable[MediaSpan], spatial_merge: int = SPATIAL_MERGE) -> Positions:
    """Positions as Baidu's code counts them.

    Text (start and end markers are text here) counts up on the three axes together. An item of (t, h, w) tokens that begins
    at position p has (p + time, p + row, p + column), and the text after it goes on at p + max(t, h, w). That maximum
    includes time: transformers' native code leaves it out, so in a long video its text falls inside the video's span.

    num_tokens: length of the sequence. spans: the items in order, not overlapping.
    """
    positions_SX = np.empty((num_tokens, 3), dtype=np.int64)
    end, position = 0, 0
    for offset, grid in spans:
        assert offset >= end, (offset, end)
        positions_SX[end:offset] = np.arange(position, position + offset - end)[:, None]
        position += offset - end
        shape = merged_grid(grid, spatial_merge)
        end = offset + shape[0] * shape[1] * shape[2]
        assert end <= num_tokens, (grid, offset, num_tokens)
        positions_SX[offset:end] = np.indices(shape).reshape(3, -1).T + position
        position += max(shape)
    positions_SX[end:] = np.arange(position, position + num_tokens - end)[:, None]
    return Positions(positions_SX, position + num_tokens - end)
