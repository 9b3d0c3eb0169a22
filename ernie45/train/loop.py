"""The training loop: stages of steps over data-parallel shards, with checkpoints from which it goes on bit for bit.

Knows nothing about what is learnt: batches, forwards and objectives come with the stages.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ernie45.config.errors import CheckpointError, ConfigError, Ernie45Error
from ernie45.config.train import LoopConfig, OptimConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.parallel.apply import apply
from ernie45.parallel.whole import fill, shape_of, whole_tensors
from ernie45.train.guard import NO_NUMBER, Guard
from ernie45.train.metrics import StepMeter
from ernie45.train.optim import Optimizer
from ernie45.train.plan import StagePlan, StepPlan, group_of
from ernie45.train.routing import balance_step, orthogonal_step, pools_of
from ernie45.train.saver import Saver
from ernie45.train.stage import Stage, Stateful
from ernie45.train.storage import MetricsLog, load_checkpoint
from ernie45.train.workers import Workers

_TOTAL = "\0total"
"""The step's loss as it is differentiated, among the sums of a step."""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and what it is told.

    folder: for checkpoint and metrics; only rank 0 writes. fingerprint: of the config; a checkpoint of another one is refused;
    None takes any.
    stop_requested: asked before each step; True on any process ends the run after a checkpoint. on_step: told every step's
    entry, on rank 0. say: told what a person should know, on rank 0.
    """

    folder: Path
    fingerprint: str | None
    stop_requested: Callable[[], bool] = lambda: False
    on_step: Callable[[dict[str, Any]], None] = lambda entry: None
    say: Callable[[str], None] = _say


class Wishes(NamedTuple):
    """What a process wants of the step that comes; what any wants, all do."""

    stop: bool
    save: bool


class Trainer:
    """Runs stages on modules["model"] and whatever else a stage brings ("head").

    After `run`, on rank 0, `modules` and `model` are whole and plain again, however they were spread.
    """

    def __init__(
        self, modules: nn.ModuleDict, stages: Sequence[Stage], config: LoopConfig, optim: OptimConfig, workers: Workers
    ) -> None:
        model = modules["model"]
        assert isinstance(model, ErnieModel), type(model)
        self.modules, self.model, self.stages, self.config, self.workers = modules, model, stages, config, workers
        sharded = config.shard == "full" and workers.num_processes > 1
        if sharded and any(stage.before_step is not None for stage in stages):
            raise ConfigError(
                "loop.shard ('full') cannot be used where a stage works on whole weights between steps "
                "(rollouts, experts that are born, a reference measured on the way); use loop.shard=none"
            )
        if config.export_average and not any(stage.keeps_average for stage in stages):
            raise ConfigError(
                "loop.export_average (True) needs a stage that keeps an average; this recipe has none, leave it out"
            )
        self._shape = shape_of(modules) if sharded else None
        # A weight that no stage trains has no master copy, no moments and no place in checkpoints.
        masters = {
            name: parameter.detach()
            for name, parameter in modules.named_parameters()
            if parameter.requires_grad and any(group_of(stage, name) for stage in stages)
        }
        self._forward = apply(modules, config, workers.num_processes)
        trained = {name: parameter for name, parameter in modules.named_parameters() if name in masters}
        self.optimizer = Optimizer(trained, optim, workers)
        self.optimizer.flat.load(masters)
        self.average: Tensor | None = None
        self.step = 0  # over all stages
        self.skipped: dict[int, str] = {}  # step -> why it was left out
        self._whole_average: dict[str, Tensor] | None = None  # where parameters were dealt out, when the run is over
        self._guard = Guard(config.spike_mads, config.spike_window)
        self._log: MetricsLog | None = None
        self._stall = 0.0  # seconds of the last checkpoint, until they are logged
        self._pools = list(pools_of(model))
        self._meter = StepMeter(model)
        names = [span.name for span in self.optimizer.flat.spans]
        self._plans = [StagePlan(stage, names, self.optimizer) for stage in stages]

    @property
    def num_steps(self) -> int:
        return sum(stage.schedule.num_steps for stage in self.stages)

    def run(self, run: Run) -> bool:
        """Train to the end, from the folder's checkpoint if there is one. False if stopped before."""
        resumed = self._resume(run)
        stop = False
        with Saver(run.folder, self.config, self.step) as saver:
            self._log = MetricsLog(run.folder, self.step) if self.workers.rank == 0 else None
            if not resumed and self.config.spike_mads:
                self._save(run, saver)  # something to go back to
            while self.step < self.num_steps and not stop:
                saver.check()
                stage, step = self._place()
                if self.step in self.skipped:
                    self._tell(run, self._skipped_entry(stage, step))
                    wishes = Wishes(False, False)
                else:
                    mine = Wishes(run.stop_requested(), self.workers.rank == 0 and saver.due(self.step))
                    entry, wishes, fault = self._step(stage, step, mine)
                    if fault is not None:
                        self._rewind(run, saver, fault)
                        continue
                    self._tell(run, entry)
                self.step += 1
                stop = wishes.stop
                if stop or wishes.save or self.step == self.num_steps:
                    self._stall = self._save(run, saver)
        if self.step == self.num_steps:
            self._make_whole()
        return self.step == self.num_steps

    def averaged_state(self) -> dict[str, Tensor] | None:
        """The averaged weights of all modules by name; None if no stage kept them. Where parameters are dealt out: on rank 0,
        when the run is over."""
        if self.average is None or self._shape is not None:
            return self._whole_average
        return self.optimizer.flat.by_name(self.average)

    def use_average(self) -> None:
        """Put the averaged weights in the place of the last ones, when the run is over."""
        average = self.averaged_state()
        assert average is not None, "no stage keeps an average"
        parameters = dict(self.modules.named_parameters())
        with torch.no_grad():
            for name, value in average.items():
                parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, by name, in memory of its own. Where parameters are dealt out every process must
        call it, and rank 0 gets it."""
        flat = self.optimizer.flat
        return {
            "step": self.step,
            "parameters": flat.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else flat.by_name(self.average),
            "biases": {name: pool.router.correction_bias.clone() for name, pool in self._pools},
            "skipped": dict(self.skipped),
            "guard": self._guard.state_dict(),
            "stateful": {name: copy.deepcopy(item.state_dict()) for name, item in self._stateful()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Whole tensors, however they are dealt out here. CheckpointError if they are of other parameters."""
        flat = self.optimizer.flat
        others = state["parameters"].keys() ^ {span.name for span in flat.spans}
        if others:
            raise CheckpointError(f"checkpoint is of other parameters ({min(others)}, ...); use the same settings, or --fresh")
        self.step, self.skipped = state["step"], dict(state["skipped"])
        self._guard.load_state_dict(state["guard"])
        flat.load(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = None
        if state["average"] is not None:
            self.average = torch.empty_like(flat.values)
            flat.fill(self.average, state["average"])
        for name, pool in self._pools:
            pool.router.correction_bias.copy_(state["biases"][name])
        for name, item in self._stateful():
            item.load_state_dict(state["stateful"][name])

    def _stateful(self) -> Iterator[tuple[str, Stateful]]:
        for stage in self.stages:
            for name, item in stage.stateful.items():
                yield f"{stage.name}.{name}", item

    def _resume(self, run: Run) -> bool:
        state = load_checkpoint(run.folder)
        if state is None:
            return False
        if run.fingerprint is not None and state.get("fingerprint") != run.fingerprint:
            raise CheckpointError(
                f"checkpoint in {run.folder} belongs to a run with other settings; "
                "use the same settings, another --out, or --fresh to start again"
            )
        self.load_state_dict(state)
        return True

    def _save(self, run: Run, saver: Saver) -> float:
        """Hand a copy of the state to the saver; returns the seconds that training stood still for it."""
        started = time.perf_counter()
        state = self.state_dict() | {"fingerprint": run.fingerprint}
        if self.workers.rank == 0:
            saver.save(state)
        return time.perf_counter() - started

    def _rewind(self, run: Run, saver: Saver, why: str) -> None:
        """Leave this step out: from the last good state on, which is the present one if only the step's gradient is broken."""
        config, step = self.config, self.step
        self.skipped[step] = why
        if len(self.skipped) > config.max_skips:
            raise Ernie45Error(
                f"step {step}: {why}; {config.max_skips} steps were left out before, as many as loop.max_skips allows; look at "
                "the data and the learning rate (the checkpoint before it is whole)"
            )
        unharmed = torch.isfinite(self.optimizer.flat.values.sum()).float()[None].cpu()
        self.workers.add(unharmed)
        if int(unharmed) < self.workers.num_processes or not why.startswith(NO_NUMBER):
            saver.wait()
            self.workers.wait()  # until the file is there for all
            state = load_checkpoint(run.folder)
            if state is None:
                raise Ernie45Error(
                    f"step {step}: {why}, and there is no checkpoint before it; lower the learning rate (optim.lr)"
                )
            skipped = self.skipped
            self.load_state_dict(state)
            self.skipped = skipped
        if self.workers.rank == 0:
            run.say(f"step {step}: {why}; it is left out, and training goes on from step {self.step}")
            self._log = MetricsLog(run.folder, self.step)
        self._save(run, saver)  # a run killed now must leave the same steps out

    def _skipped_entry(self, stage: Stage, step: int) -> dict[str, Any]:
        return {"step": self.step, "stage": stage.name, "stage_step": step, "skipped": True, "why": self.skipped[self.step]}

    def _tell(self, run: Run, entry: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(entry)
            run.on_step(entry)

    def _make_whole(self) -> None:
        """Modules as they were before they were dealt out, on rank 0."""
        if self._shape is None:
            return
        flat = self.optimizer.flat
        parameters = flat.state_dict()
        others = whole_tensors(self.modules, {span.name for span in flat.spans})
        if self.average is not None:
            self._whole_average = flat.by_name(self.average)
        if self.workers.rank == 0:
            self.modules = fill(self._shape, parameters | others)
            model = self.modules["model"]
            assert isinstance(model, ErnieModel)
            self.model = model

    def _place(self) -> tuple[Stage, int]:
        """The stage of the next step and the step's number inside it."""
        step = self.step
        for stage in self.stages:
            if step < stage.schedule.num_steps:
                return stage, step
            step -= stage.schedule.num_steps
        raise AssertionError((self.step, self.num_steps))

    def _step(self, stage: Stage, step: int, mine: Wishes) -> tuple[dict[str, Any], Wishes, str | None]:
        """One update. Returns what is logged, what was wished, and why the step must not count; if so, nothing has changed.

        1 shards forward and backward, 2 sum over processes, 3 optimiser, 4 routers, 5 average, 6 evaluation.
        """
        started, cpu_started = time.perf_counter(), time.process_time()
        told: Mapping[str, float] = stage.before_step(step) if stage.before_step is not None else {}
        totals, data_seconds = self._shards(stage, step)
        wishes = self._add_up(totals, mine)
        plan = self._plans[self.stages.index(stage)].at(step)
        norm = float(self.optimizer.clip(plan.batches))
        fault = self._guard.fault(stage.name, float(totals.pop(_TOTAL)[0]), norm)
        if fault is not None:
            return {}, wishes, fault
        self.optimizer.step(plan.batches, plan.lr_factors)
        self._keep_routers(stage, step, plan)
        if stage.keeps_average:
            self._average()
        seconds = time.perf_counter() - started
        entry = {
            "step": self.step,
            "stage": stage.name,
            "stage_step": step,
            **{name: float(total[0] / total[1]) for name, total in totals.items() if total[1]},
            **self._meter.entry(self.step, seconds, self.workers.num_processes),
            **told,
            "lr_factor": stage.schedule.factor(step),
            "lrs": {name: self.optimizer.config.lr * factor for name, factor in plan.factor_of.items()},
            "grad_norm": norm,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_started,
            "data_seconds": data_seconds,
            **(self._evaluate(stage) if stage.evaluates_after(step) else {}),
        }
        if self._stall:
            entry["checkpoint_seconds"], self._stall = self._stall, 0.0
        return entry, wishes, None

    def _shards(self, stage: Stage, step: int) -> tuple[dict[str, Tensor], float]:
        """Gradients of this process's shards, added up in the flat gradient.

        Returns sums and counts of the metrics, and the seconds that were waited for batches.
        """
        self.optimizer.flat.zero_grad()
        self._meter.begin()
        waited = 0.0
        device = self.optimizer.flat.grads.device
        totals: dict[str, Tensor] = {}
        for shard in self.workers.shards(self.config.num_shards):
            started = time.perf_counter()
            batch = stage.batch(step, shard)
            waited += time.perf_counter() - started
            outputs = self._forward(stage.forward, batch)
            loss = stage.objective(outputs, batch, stage.objective_config)
            loss.loss.backward()
            self.optimizer.flat.collect()
            self._meter.add(batch, outputs)
            for name, (value, count) in {**loss.metrics, _TOTAL: (loss.loss.detach(), 1)}.items():
                totals[name] = totals.get(name, 0) + torch.tensor([float(value), float(count)], device=device)
        return totals, waited

    def _add_up(self, totals: dict[str, Tensor], mine: Wishes) -> Wishes:
        """Sum gradients, counts, metrics and wishes over all processes in one vector. Dealt-out gradients are sums already."""
        flat = self.optimizer.flat
        flags = torch.tensor([float(mine.stop), float(mine.save)], device=flat.grads.device)
        whole = (
            [flat.grads]
            if not flat.sharded
            else [flat.grads[span.start : span.end] for span in flat.spans if span.axis is None]
        )
        parts = [*whole, *self._meter.parts(), *(totals[name] for name in sorted(totals)), flags]
        if self.workers.num_processes > 1:
            vector = torch.cat(parts)
            self.workers.add(vector)
            for part, summed in zip(parts, vector.split([len(part) for part in parts]), strict=True):
                part.copy_(summed)
        return Wishes(stop=bool(flags[0] > 0), save=bool(flags[1] > 0))

    def _keep_routers(self, stage: Stage, step: int, plan: StepPlan) -> None:
        """Orthogonal step and correction bias of the pools whose gates learn in this step."""
        if stage.routers is None:
            return
        stage_plan = self._plans[self.stages.index(stage)]
        for (name, pool), usage_E in zip(self._pools, self._meter.usage, strict=True):
            factor = stage_plan.factor_of(f"model.{name}.router.weight", plan)
            if factor is None:
                continue
            modality = pool.config.modality
            lr = self.optimizer.config.lr * factor
            orthogonal_step(pool.router, lr, stage.routers.of_pool("orthogonal_weight", modality))
            balance_step(pool.router, usage_E, stage.routers.of_pool("bias_rate", modality) * factor)

    def _evaluate(self, stage: Stage) -> Mapping[str, float]:
        evaluate = stage.evaluate
        assert evaluate is not None
        return self._forward(lambda modules, _: evaluate(modules), None)

    def _average(self) -> None:
        values = self.optimizer.flat.values
        if self.average is None:
            self.average = values.clone()
        else:
            self.average.lerp_(values, 1 - self.config.ema_decay)
