"""The vision tower: a pre-norm transformer over patches with 2-D rope and attention inside each frame.

Knows nothing about language, merging or where pictures come from.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ernie45.config.model import VisionConfig
from ernie45.model.linear import Linear
from ernie45.model.lora import AdapterRows, add_low_rank
from ernie45.ops.attention import packed_attention
from ernie45.ops.rope import rotate_halves, vision_rope_table

# CLIP's channel statistics, which the released model was trained with; pixels are scaled to 0..1 first.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionTower(nn.Module):
    """uint8 patches -> one feature a patch. Frames never see each other; inside a frame attention is full."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = Linear(config.patch_dim, config.hidden_size, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.ln = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, patches_PC: Tensor, grids: tuple[tuple[int, int, int], ...], adapters: tuple[AdapterRows, ...] = ()
    ) -> Tensor:
        """patches [P, C] uint8 in merge-window order, grids (frames, height, width) -> features [P, vision hidden]."""
        config = self.config
        pixels_PC = normalise_pixels(patches_PC, config.in_channels).to(self.patch_embed.weight.dtype)
        x_PD = add_low_rank(self.patch_embed(pixels_PC), pixels_PC, self.patch_embed, adapters)
        yx_P2 = torch.from_numpy(patch_coordinates(grids, config.spatial_merge_size)).to(patches_PC.device)
        rope = vision_rope_table(yx_P2, config.head_dim, config.rope_theta)
        cu_seqlens = [0]
        for frames, height, width in grids:
            for _ in range(frames):
                cu_seqlens.append(cu_seqlens[-1] + height * width)
        for block in self.blocks:
            x_PD = block(x_PD, rope, cu_seqlens, adapters)
        return self.ln(x_PD)


class VisionBlock(nn.Module):
    """x += attention(LN x); x += MLP(LN x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(
        self, x_PD: Tensor, rope: tuple[Tensor, Tensor], cu_seqlens: list[int], adapters: tuple[AdapterRows, ...] = ()
    ) -> Tensor:
        x_PD = x_PD + self.attn(self.norm1(x_PD), rope, cu_seqlens, adapters)
        return x_PD + self.mlp(self.norm2(x_PD), adapters)


class VisionAttention(nn.Module):
    """Full attention inside each frame; one biased projection for q | k | v."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x_PD: Tensor, rope: tuple[Tensor, Tensor], cu_seqlens: list[int], adapters: tuple[AdapterRows, ...] = ()
    ) -> Tensor:
        qkv = add_low_rank(self.qkv(x_PD), x_PD, self.qkv, adapters).unflatten(-1, (3 * self.num_heads, -1))
        qk, v_PHK = qkv.split((2 * self.num_heads, self.num_heads), dim=1)
        q_PHK, k_PHK = rotate_halves(qk, *rope).chunk(2, dim=1)
        out_PD = packed_attention(q_PHK, k_PHK, v_PHK, cu_seqlens, causal=False).flatten(1)
        return add_low_rank(self.proj(out_PD), out_PD, self.proj, adapters)


class VisionMLP(nn.Module):
    """fc2(quick_gelu(fc1 x)) with quick_gelu(z) = z * sigmoid(1.702 z)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_PD: Tensor, adapters: tuple[AdapterRows, ...] = ()) -> Tensor:
        z_PF = add_low_rank(self.fc1(x_PD), x_PD, self.fc1, adapters)
        hidden_PF = z_PF * torch.sigmoid(1.702 * z_PF)
        return add_low_rank(self.fc2(hidden_PF), hidden_PF, self.fc2, adapters)


def normalise_pixels(patches_PC: Tensor, in_channels: int) -> Tensor:
    """(u8 / 255 - mean) / std per channel, fp32 [P, C]; a patch's vector is channel-major."""
    device = patches_PC.device
    # Three channels have their own statistics; other counts (tests, greyscale experiments) repeat the first.
    mean = torch.tensor([PIXEL_MEAN[c % 3] for c in range(in_channels)], device=device)[:, None]
    std = torch.tensor([PIXEL_STD[c % 3] for c in range(in_channels)], device=device)[:, None]
    pixels = patches_PC.float().unflatten(-1, (in_channels, -1)) * (1 / 255)
    return ((pixels - mean) / std).flatten(1)


@lru_cache(maxsize=256)
def _frame_coordinates(height: int, width: int, merge: int) -> np.ndarray:
    """Row and column of each patch of one frame, int64 [h * w, 2], in the order of merge windows."""
    yx = np.moveaxis(np.indices((height, width)), 0, -1)
    windows = yx.reshape(height // merge, merge, width // merge, merge, 2)
    return np.ascontiguousarray(windows.transpose(0, 2, 1, 3, 4).reshape(-1, 2))


def patch_coordinates(grids: tuple[tuple[int, int, int], ...], merge: int) -> np.ndarray:
    """Row and column of each patch of all pictures, int64 [P, 2]."""
    frames = [_frame_coordinates(height, width, merge) for count, height, width in grids for _ in range(count)]
    return np.concatenate(frames) if frames else np.empty((0, 2), np.int64)
