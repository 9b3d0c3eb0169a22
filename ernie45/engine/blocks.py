"""Rows over a wide vocabulary, looked at in blocks: first each block's largest value or sum, then only the blocks that matter.

Knows nothing about what the values mean. In names, N is the number of blocks, B the values in one, C the values looked for
and M those looked through for them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64


def in_blocks(values_RV: Tensor, filler: float) -> Tensor:
    """Values [R, V] as [R, blocks, BLOCK]; the last block is filled up."""
    missing = -values_RV.shape[1] % BLOCK
    padded_RV = F.pad(values_RV, (0, missing), value=filler) if missing else values_RV
    return padded_RV.view(len(padded_RV), -1, BLOCK)


def block_of(blocks_RNB: Tensor, index_R1: Tensor) -> Tensor:
    """One block of each row, [R, BLOCK]."""
    return blocks_RNB.gather(1, index_R1[:, :, None].expand(-1, -1, BLOCK))[:, 0]


def first_argmax(logits_RV: Tensor) -> Tensor:
    """The first of the largest logits of each row. In two steps, as torch's argmax is many times slower than its amax."""
    blocks_RNB = in_blocks(logits_RV, -torch.inf)
    index_R1 = blocks_RNB.amax(-1).argmax(-1, keepdim=True)
    return (index_R1 * BLOCK + block_of(blocks_RNB, index_R1).argmax(-1, keepdim=True))[:, 0]


def likeliest(logits_RV: Tensor, width: int) -> Tensor:
    """Ids of the `width` largest logits of each row in falling order; of all of them, equal ones by id, if it has no more."""
    if width >= logits_RV.shape[1]:
        return logits_RV.sort(dim=-1, descending=True, stable=True).indices
    if width * 4 * BLOCK > logits_RV.shape[1]:
        return logits_RV.topk(width, dim=-1).indices
    # The C largest logits are in the C blocks with the largest ones, or behind the last whole block.
    num_whole = logits_RV.shape[1] // BLOCK * BLOCK
    blocks_RNB = logits_RV[:, :num_whole].unflatten(1, (-1, BLOCK))
    index_RC = blocks_RNB.amax(-1).topk(width, dim=-1, sorted=False).indices
    inside_RM = blocks_RNB.gather(1, index_RC[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    found_RM = torch.cat([inside_RM, logits_RV[:, num_whole:]], dim=1)
    best_RC = found_RM.topk(width, dim=-1).indices
    inside_RC = index_RC.gather(1, (best_RC // BLOCK).clamp_max(width - 1)) * BLOCK + best_RC % BLOCK
    return torch.where(best_RC < width * BLOCK, inside_RC, best_RC - width * BLOCK + num_whole)
