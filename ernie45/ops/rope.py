"""Rotary position embeddings: interleaved and three-axis for the decoder, half-split and two-axis for the vision tower.

Knows nothing about tokens or pictures; positions come as integer tensors.
"""

import torch
from torch import Tensor


def decoder_rope_table(positions_TX: Tensor, head_dim: int, theta: float, mrope_section: tuple[int, int, int]) -> Tensor:
    """Rotations of the decoder's 3-D rope, computed once per step for all layers.

    Pair j of head_dim / 2 turns by position[axis_j] * theta ** (-2j / head_dim). The first h + w pairs alternate
    height, width; the last t pairs, the lowest frequencies, follow time. positions_TX holds (time, height, width).
    Returns cos + i sin, complex64 [T, 1, head_dim / 2], broadcasting over heads.
    """
    height, width, time = mrope_section
    assert height == width, mrope_section
    assert 2 * (height + width + time) == head_dim, (mrope_section, head_dim)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_TX.device) / head_dim
    inverse_frequencies = 1.0 / (theta**exponents)
    time_T1, space_T2 = positions_TX.float().split((1, 2), dim=-1)
    positions_TK = torch.cat((space_T2.repeat(1, height), time_T1.expand(-1, time)), dim=-1)
    angles_TK = positions_TK * inverse_frequencies
    return torch.polar(torch.ones_like(angles_TK), angles_TK)[:, None, :]


def rotate_interleaved(x_THK: Tensor, rotations: Tensor) -> Tensor:
    """Turn the pairs (2j, 2j + 1) of each head by the table's angles; fp32 inside, x's dtype out. x is [T, H, K]."""
    pairs = torch.view_as_complex(x_THK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x_THK.dtype)


def rotate_interleaved_reference(x_THK: Tensor, rotations: Tensor) -> Tensor:
    """The same by the definition: (x, y) -> (x cos - y sin, x sin + y cos)."""
    wide, cos, sin = x_THK.float(), rotations.real, rotations.imag
    x, y = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1).flatten(-2).to(x_THK.dtype)


def vision_rope_table(yx_P2: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the vision tower's 2-D rope, fp32 [P, 1, head_dim].

    yx_P2: integer row and column of each patch. A quarter of the head follows y, a quarter x, then both again:
    the half-split (NeoX) form pairs element i with element i + head_dim / 2.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=yx_P2.device) / half
    angles = (yx_P2[:, :, None].float() * (1.0 / theta**exponents)).flatten(1)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def rotate_halves(x_PHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K / 2) of each head; fp32 inside, x's dtype out. x is [P, H, K]."""
    wide = x_PHK.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x_PHK.dtype)
