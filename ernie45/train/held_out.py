"""The loss on data that is not trained on, shared out over the processes.

Knows nothing about where the batches come from or when they are asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ernie45.config.train import RouterConfig
from ernie45.data.packing import LanguageBatch
from ernie45.train.objectives.language import LanguageOutputs, language_loss
from ernie45.train.workers import Workers

_NO_ROUTER_LOSS = RouterConfig(aux_weight=0, z_weight=0)


class HeldOut:
    """Mean loss and accuracy over the labels of a fixed number of batches."""

    def __init__(
        self,
        batch: Callable[[int], LanguageBatch],
        forward: Callable[[Any, LanguageBatch], LanguageOutputs],
        num_batches: int,
        workers: Workers,
    ) -> None:
        """batch: number -> batch; pure. forward: (modules, batch) -> outputs, as in a `Stage`."""
        self._batch, self._forward, self._num_batches, self._workers = batch, forward, num_batches, workers

    @torch.no_grad()
    def __call__(self, modules: Any) -> Mapping[str, float]:
        """{"held_out_loss": ..., "held_out_accuracy": ...}; every process calls it and gets the same numbers."""
        totals = torch.zeros(3, dtype=torch.float64)
        shards = self._workers.num_processes
        # Every process runs the model equally often, as sharded weights need all of them: some run a batch that others count.
        for first in range(0, self._num_batches, shards):
            number = first + self._workers.rank
            batch = self._batch(min(number, self._num_batches - 1))
            metrics = language_loss(self._forward(modules, batch), batch, _NO_ROUTER_LOSS).metrics
            if number < self._num_batches:
                (loss, count), (right, _) = metrics["loss"], metrics["accuracy"]
                totals += torch.tensor([float(loss), float(right), float(count)], dtype=torch.float64)
        self._workers.add(totals)
        loss, right, count = totals.tolist()
        return {"held_out_loss": loss / max(count, 1), "held_out_accuracy": right / max(count, 1)}
