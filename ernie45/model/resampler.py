"""The resampler: joins 2 x 2 patches, then pairs of frames, and projects to the decoder's width.

Knows nothing about the tower before it or the tokens after it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie45.config.model import ModelConfig
from ernie45.model.linear import Linear
from ernie45.model.lora import AdapterRows, add_low_rank
from ernie45.model.norm import RMSNorm


class MergeMLP(nn.Module):
    """LN(fc2(gelu(fc1 x))), exact gelu."""

    def __init__(self, input_size: int, size: int, eps: float) -> None:
        super().__init__()
        self.fc1 = Linear(input_size, size)
        self.fc2 = Linear(size, size)
        self.ln = nn.LayerNorm(size, eps=eps)

    def forward(self, x: Tensor, adapters: tuple[AdapterRows, ...] = ()) -> Tensor:
        hidden = F.gelu(add_low_rank(self.fc1(x), x, self.fc1, adapters))
        return self.ln(add_low_rank(self.fc2(hidden), hidden, self.fc2, adapters))


class Resampler(nn.Module):
    """4x fewer rows in space and 2x fewer in time. A single image is paired with itself in time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision = config.vision
        assert vision is not None, "a resampler needs a vision config"
        self.merge = vision.spatial_merge_size
        merged = vision.hidden_size * self.merge**2
        self.spatial_linear = MergeMLP(merged, merged, vision.norm_eps)
        self.temporal_linear = MergeMLP(merged * vision.temporal_merge_size, merged, vision.norm_eps)
        self.mlp = Linear(merged, config.hidden_size)
        self.after_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, features_PC: Tensor, grids: tuple[tuple[int, int, int], ...], adapters: tuple[AdapterRows, ...] = ()
    ) -> Tensor:
        """features [P, vision hidden], windows of 2 x 2 contiguous -> [R, D]; R = sum of max(1, t / 2) * h * w / 4."""
        x = self.spatial_linear(features_PC.unflatten(0, (-1, self.merge**2)).flatten(1), adapters)
        if any(frames > 1 for frames, _, _ in grids):
            first, second = frame_pairs(grids, self.merge)
            device = x.device
            first_R, second_R = torch.from_numpy(first).to(device), torch.from_numpy(second).to(device)
            pairs = torch.cat((x.index_select(0, first_R), x.index_select(0, second_R)), dim=-1)
        else:
            pairs = torch.cat((x, x), dim=-1)
        joined = self.temporal_linear(pairs, adapters)
        return self.after_norm(add_low_rank(self.mlp(joined), joined, self.mlp, adapters))


@lru_cache(maxsize=256)
def frame_pairs(grids: tuple[tuple[int, int, int], ...], merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the even and of the odd frames to join, int64 [R] each; an image's rows pair with themselves."""
    first, second, start = [], [], 0
    for frames, height, width in grids:
        size = (height // merge) * (width // merge)
        rows = np.arange(start, start + frames * size).reshape(frames, size)
        assert frames == 1 or frames % 2 == 0, f"a video of {frames} frames cannot be paired"
        first.append(rows[0::2].ravel())
        second.append((rows if frames == 1 else rows[1::2]).ravel())
        start += frames * size
    return np.concatenate(first), np.concatenate(second)
