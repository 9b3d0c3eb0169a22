"""Data-parallel processes on one machine: starting them, and adding up vectors over them.

Knows nothing about models or training.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from ernie45.config.errors import Ernie45Error

_TIMEOUT = timedelta(minutes=5)


class Workers:
    """This process's place among the others. With one process nothing is started and nothing is sent."""

    def __init__(self, rank: int = 0, num_processes: int = 1) -> None:
        self.rank = rank
        self.num_processes = num_processes

    def shards(self, num_shards: int) -> range:
        """The micro-batches of a step that are this process's."""
        return range(self.rank, num_shards, self.num_processes)

    def add(self, vector: Tensor) -> None:
        """Replace a vector by its sum over all processes; all get the same bits."""
        if self.num_processes > 1:
            with _others_alive(self.rank):
                dist.all_reduce(vector)

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.add(torch.zeros(1))

    def gather(self, vector: Tensor) -> list[Tensor] | None:
        """Vectors of all processes, of any lengths, on the host: a list on rank 0, None elsewhere."""
        if self.num_processes == 1:
            return [vector]
        with _others_alive(self.rank):
            lengths = torch.zeros(self.num_processes, dtype=torch.int64)
            lengths[self.rank] = len(vector)
            dist.all_reduce(lengths)
            padded = torch.nn.functional.pad(vector, (0, int(lengths.max()) - len(vector)))
            parts = [torch.empty_like(padded) for _ in lengths] if self.rank == 0 else None
            dist.gather(padded, parts)
        return None if parts is None else [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]

    def exchange(self, outgoing: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Send one vector to each process and get one from each, of these sizes."""
        incoming = outgoing[0].new_empty(sum(sizes))
        with _others_alive(self.rank):
            dist.all_to_all_single(incoming, torch.cat(outgoing), sizes, [len(vector) for vector in outgoing])
        return list(incoming.split(sizes))


@contextlib.contextmanager
def _others_alive(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Ernie45Error(
            f"a training process (not rank {rank}) ended; run the same command again to go on from the last checkpoint"
        ) from error


def torchrun_ranks() -> int:
    """How many processes torchrun has started, this one among them; 0 if it was not torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def torchrun_rank() -> int:
    """This process's place among those that torchrun has started; 0 if it was not torchrun."""
    return int(os.environ["RANK"]) if torchrun_ranks() else 0


@contextlib.contextmanager
def started(num_processes: int, target: Callable[..., object], *args: Any) -> Iterator[Workers]:
    """Start the other processes, each calling target(workers, *args), and be rank 0 inside the context.

    They are told to end when the context is left by an exception, and end by themselves when this process is killed, as the
    next sum then fails. target and args must be importable and picklable. Under torchrun the processes are there: each is given
    its own rank and does what it is asked to do inside the context.
    """
    if torchrun_ranks():
        with _joined() as workers:
            yield workers
        return
    if num_processes == 1:
        yield Workers()
        return
    store = TCPStore("127.0.0.1", 0, num_processes, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_child, args=(rank, num_processes, store.port, target, args), daemon=True)
        for rank in range(1, num_processes)
    ]
    for child in children:
        child.start()
    dist.init_process_group("gloo", store=store, rank=0, world_size=num_processes, timeout=_TIMEOUT)
    try:
        yield Workers(0, num_processes)
        for child in children:
            child.join(timeout=60)
    finally:
        for child in children:
            child.kill()
        dist.destroy_process_group()


@contextlib.contextmanager
def _joined() -> Iterator[Workers]:
    """This process's place among those that torchrun has started."""
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _child(rank: int, num_processes: int, port: int, target: Callable[..., object], args: tuple) -> None:
    # Ctrl-C reaches every process of the terminal; rank 0 decides when to stop and tells the others within a step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, num_processes, is_master=False, timeout=_TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes, timeout=_TIMEOUT)
    with contextlib.suppress(Ernie45Error):  # rank 0 has gone and has said why
        target(Workers(rank, num_processes), *args)
    dist.destroy_process_group()
