"""The training loop: stages of steps over data-parallel shards, with checkpoints from which it goes on bit for bit.

Knows nothing about what is learnt: batches, forwards and objectives come with the stages.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ernie45.config.errors import CheckpointError
from ernie45.config.train import LoopConfig, OptimConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.train.optim import Optimizer
from ernie45.train.routing import balance_step, max_violation, orthogonal_step, pools_of, usage_of
from ernie45.train.stage import Stage, Stateful
from ernie45.train.storage import MetricsLog, load_checkpoint, save_checkpoint
from ernie45.train.workers import Workers

LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and what it is told.

    folder: for checkpoint and metrics; only rank 0 writes. fingerprint: of the config; a checkpoint of another one is refused;
    None takes any.
    stop_requested: asked before each step on rank 0; True ends the run after a checkpoint. on_step: told every step's entry.
    """

    folder: Path
    fingerprint: str | None
    stop_requested: Callable[[], bool] = lambda: False
    on_step: Callable[[dict[str, Any]], None] = lambda entry: None


class Trainer:
    """Runs stages on modules["model"] and whatever else a stage brings ("head")."""

    def __init__(
        self, modules: nn.ModuleDict, stages: Sequence[Stage], config: LoopConfig, optim: OptimConfig, workers: Workers
    ) -> None:
        model = modules["model"]
        assert isinstance(model, ErnieModel), type(model)
        self.modules, self.model, self.stages, self.config, self.workers = modules, model, stages, config, workers
        trained = {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}
        self.optimizer = Optimizer(trained, optim, workers)
        self.average: Tensor | None = None
        self.step = 0  # over all stages
        self._pools = list(pools_of(model))
        self._usage = [torch.zeros(pool.config.num_experts) for _, pool in self._pools]

    @property
    def num_steps(self) -> int:
        return sum(stage.schedule.num_steps for stage in self.stages)

    def run(self, run: Run) -> bool:
        """Train to the end, from the folder's checkpoint if there is one. False if stopped before."""
        self._resume(run)
        log = MetricsLog(run.folder, self.step) if self.workers.rank == 0 else None
        saved_at = time.monotonic()
        while self.step < self.num_steps:
            stage, step = self._place()
            entry = self._step(stage, step, run.stop_requested() if self.workers.rank == 0 else False)
            self.step += 1
            if log is not None:
                if self.step % LOG_EVERY == 0 or self.step == self.num_steps or stage.evaluates_after(step):
                    log.write(entry)
                run.on_step(entry)
            done = self.step == self.num_steps or entry["stop"]
            if self.workers.rank == 0 and (done or time.monotonic() - saved_at > self.config.checkpoint_seconds):
                save_checkpoint(run.folder, self.state_dict() | {"fingerprint": run.fingerprint})
                saved_at = time.monotonic()
            if entry["stop"]:
                return False
        return True

    def averaged_state(self) -> dict[str, Tensor] | None:
        """The averaged weights of all modules by name; None if no stage kept them."""
        return None if self.average is None else self.optimizer.flat.by_name(self.average)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, by name."""
        biases = {name: pool.router.correction_bias.clone() for name, pool in self._pools}
        return {
            "step": self.step,
            "parameters": self.optimizer.flat.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.averaged_state(),
            "biases": biases,
            "stateful": {name: item.state_dict() for name, item in self._stateful()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        flat = self.optimizer.flat
        self.step = state["step"]
        for span in flat.spans:
            flat.values[span.start : span.end].copy_(state["parameters"][span.name].flatten())
        self.optimizer.load_state_dict(state["optimizer"])
        if state["average"] is not None:
            self.average = torch.cat([state["average"][span.name].flatten() for span in flat.spans])
        for name, pool in self._pools:
            pool.router.correction_bias.copy_(state["biases"][name])
        for name, item in self._stateful():
            item.load_state_dict(state["stateful"][name])

    def _stateful(self) -> Iterator[tuple[str, Stateful]]:
        for stage in self.stages:
            for name, item in stage.stateful.items():
                yield f"{stage.name}.{name}", item

    def _resume(self, run: Run) -> None:
        state = load_checkpoint(run.folder)
        if state is None:
            return
        if run.fingerprint is not None and state.get("fingerprint") != run.fingerprint:
            raise CheckpointError(
                f"checkpoint in {run.folder} belongs to a run with other settings; "
                "use the same settings, another --out, or --fresh to start again"
            )
        self.load_state_dict(state)

    def _place(self) -> tuple[Stage, int]:
        """The stage of the next step and the step's number inside it."""
        step = self.step
        for stage in self.stages:
            if step < stage.schedule.num_steps:
                return stage, step
            step -= stage.schedule.num_steps
        raise AssertionError((self.step, self.num_steps))

    def _step(self, stage: Stage, step: int, stop: bool) -> dict[str, Any]:
        """One update. 1 shards forward and backward, 2 sum over processes, 3 optimiser, 4 routers, 5 average."""
        started = time.process_time()
        told = stage.before_step(step) if stage.before_step is not None else {}
        totals = self._shards(stage, step)
        stop_total = self._add_up(totals, stop)
        batches = self.optimizer.select(stage.trains)
        factor = stage.schedule.factor(step)
        norm = self.optimizer.clip([span for batch in batches for span in batch.spans])
        self.optimizer.step(batches, factor)
        if stage.routers is not None:
            lr = self.optimizer.config.lr * factor
            orthogonal_step(self.model, lr, stage.routers.orthogonal_weight)
            for (_, pool), usage_E in zip(self._pools, self._usage, strict=True):
                balance_step(pool.router, usage_E, stage.routers.bias_rate * factor)
        if stage.keeps_average:
            self._average()
        if stage.evaluate is not None and stage.evaluates_after(step):
            told = {**told, **stage.evaluate(self.modules)}
        return {
            **self._entry(stage, step, totals),
            **told,
            "lr_factor": factor,
            "grad_norm": float(norm),
            "cpu_seconds": time.process_time() - started,
            "stop": stop_total,
        }

    def _shards(self, stage: Stage, step: int) -> dict[str, Tensor]:
        """Gradients of this process's shards, added up in the flat gradient; returns sums and counts of the metrics."""
        self.optimizer.flat.zero_grad()
        for usage_E in self._usage:
            usage_E.zero_()
        totals: dict[str, Tensor] = {}
        for shard in self.workers.shards(self.config.num_shards):
            batch = stage.batch(step, shard)
            outputs = stage.forward(self.modules, batch)
            loss = stage.objective(outputs, batch, stage.objective_config)
            loss.loss.backward()
            if stage.routers is not None:
                for total_E, usage_E in zip(self._usage, usage_of(outputs.routers), strict=True):
                    total_E += usage_E
            for name, (value, count) in loss.metrics.items():
                totals[name] = totals.get(name, 0) + torch.tensor([float(value), float(count)])
        return totals

    def _add_up(self, totals: dict[str, Tensor], stop: bool) -> bool:
        """Sum gradients, usage, metrics and the wish to stop over all processes, in one vector."""
        flags = torch.tensor([float(stop)])
        parts = [self.optimizer.flat.grads, *self._usage, *(totals[name] for name in sorted(totals)), flags]
        if self.workers.num_processes > 1:
            vector = torch.cat(parts)
            self.workers.add(vector)
            for part, summed in zip(parts, vector.split([len(part) for part in parts]), strict=True):
                part.copy_(summed)
        return bool(flags[0] > 0)

    def _average(self) -> None:
        values = self.optimizer.flat.values
        if self.average is None:
            self.average = values.clone()
        else:
            self.average.lerp_(values, 1 - self.config.ema_decay)

    def _entry(self, stage: Stage, step: int, totals: dict[str, Tensor]) -> dict[str, Any]:
        entry: dict[str, Any] = {"step": self.step, "stage": stage.name, "stage_step": step}
        entry |= {name: float(total[0] / total[1].clamp_min(1)) for name, total in totals.items()}
        if stage.routers is not None:
            for modality in ("text", "vision"):
                usages = [
                    usage for (_, pool), usage in zip(self._pools, self._usage, strict=True) if pool.config.modality == modality
                ]
                entry[f"{modality}_violation"] = max((max_violation(usage) for usage in usages), default=0.0)
        return entry
