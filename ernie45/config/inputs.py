"""What the processor makes and the model takes: one frozen multimodal sequence in NumPy.

Knows nothing about torch, text or how the pictures were read.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class MediaItem:
    """One image or video inside a sequence.

    grid: (frames, height, width) in patches, before merging. frames is 1 for an image and even for a video.
    offset, length: the span of its placeholder tokens in `token_ids` (start and end markers not counted).
    content_hash: hex SHA-256 of its patches and grid; equal pictures have equal hashes.
    """

    kind: str
    grid: tuple[int, int, int]
    offset: int
    length: int
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """One sequence, ready for the model.

    token_ids    int64 [S]; every visual token is `SpecialTokens.image_patch`.
    is_vision    bool  [S]; True for placeholders and for the start and end markers: selects the expert pool.
    positions    int64 [S, 3]; rope positions in the order (time, height, width).
    patches      uint8 [P, C]; patches of all media in the order of `media`, C = channels * patch_size ** 2.
    media        where each picture's tokens are, in text order.
    next_position: rope position of the first generated token (max over all axes + 1).
    """

    token_ids: np.ndarray
    is_vision: np.ndarray
    positions: np.ndarray
    patches: np.ndarray
    media: tuple[MediaItem, ...] = field(default=())
    next_position: int

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        assert self.is_vision.shape == (num_tokens,), (self.is_vision.shape, num_tokens)
        assert self.positions.shape == (num_tokens, 3), (self.positions.shape, num_tokens)
        num_patches = sum(t * h * w for t, h, w in (item.grid for item in self.media))
        assert len(self.patches) == num_patches, (len(self.patches), num_patches)

    def __len__(self) -> int:
        return len(self.token_ids)
