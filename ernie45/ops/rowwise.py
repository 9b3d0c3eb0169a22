"""The kernels of `csrc/rowwise.cpp`, shared by the ops that have a path over them; each of those has its slow twin beside it.

Knows nothing about layers or losses.
"""

import torch
from torch import Tensor

from ernie45.ops.native import KINDS, Kernels

KERNELS = Kernels(
    "rowwise",
    {
        "ernie_norm_forward": "ippiifip",
        "ernie_norm_backward": "ipppiifipp",
        "ernie_swiglu_forward": "ippiiip",
        "ernie_swiglu_backward": "ipppiiipp",
        "ernie_cross_entropy": "ipppiiiipp",
    },
)


def serves(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on a CPU, fp32 or bf16, a compiler found, and torch not tracing."""
    return x.device.type == "cpu" and x.dtype in KINDS and not torch.compiler.is_compiling() and KERNELS.available
