"""Data-parallel processes on one machine: starting them, and adding up vectors over them.

Knows nothing about models or training.
"""

import contextlib
import multiprocessing
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
        if self.num_processes == 1:
            return
        try:
            dist.all_reduce(vector)
        except RuntimeError as error:
            raise Ernie45Error(
                f"a training process (not rank {self.rank}) ended; run the same command again to go on from the last checkpoint"
            ) from error


@contextlib.contextmanager
def started(num_processes: int, target: Callable[..., None], *args: Any) -> Iterator[Workers]:
    """Start the other processes, each calling target(workers, *args), and be rank 0 inside the context.

    They are told to end when the context is left by an exception, and end by themselves when this process is killed, as the
    next sum then fails. target and args must be importable and picklable.
    """
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


def _child(rank: int, num_processes: int, port: int, target: Callable[..., None], args: tuple) -> None:
    # Ctrl-C reaches every process of the terminal; rank 0 decides when to stop and tells the others within a step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, num_processes, is_master=False, timeout=_TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes, timeout=_TIMEOUT)
    with contextlib.suppress(Ernie45Error):  # rank 0 has gone and has said why
        target(Workers(rank, num_processes), *args)
    dist.destroy_process_group()
