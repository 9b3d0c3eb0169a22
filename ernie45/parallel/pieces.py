"""Which part of a tensor each process holds when one of its axes is dealt out.

Knows nothing about models or communication.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def borders(size: int, rank: int, num_processes: int) -> tuple[int, int]:
    """First row of a process and the one after its last, as `torch.chunk` cuts: equal parts, the last ones shorter or empty."""
    part = -(-size // num_processes)
    return min(rank * part, size), min((rank + 1) * part, size)


def piece_shape(shape: tuple[int, ...], axis: int, rank: int, num_processes: int) -> tuple[int, ...]:
    """Shape of a process's part of a tensor."""
    start, end = borders(shape[axis], rank, num_processes)
    return (*shape[:axis], end - start, *shape[axis + 1 :])


def piece_of(whole: Tensor, axis: int | None, rank: int, num_processes: int) -> Tensor:
    """A process's part of a whole tensor, as a view; all of it if axis is None."""
    if axis is None:
        return whole
    start, end = borders(whole.shape[axis], rank, num_processes)
    return whole.narrow(axis, start, end - start)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def axis_of(tensor: Tensor) -> int | None:
    """The axis that is dealt out over the processes, or None for a tensor that each has whole."""
    if not isinstance(tensor, DTensor):
        return None
    (placement,) = tensor.placements
    assert isinstance(placement, Shard), placement
    return placement.dim


def joined(pieces: list[Tensor], axis: int | None) -> Tensor:
    """The whole of all processes' parts, in the order of the processes."""
    return pieces[0] if axis is None else torch.cat(pieces, dim=axis)
