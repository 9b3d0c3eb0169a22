"""The optimiser: Muon on matrices, stacked experts included, and AdamW on the rest; or AdamW on everything.

Knows nothing about losses or schedules: it is given summed gradients and the share of the peak rate.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie45.config.train import OptimConfig
from ernie45.train.flat import FlatParameters, Span, joins
from ernie45.train.groups import ParameterKind, is_frozen, kinds_of
from ernie45.train.muon import MuonUpdates, update_scale
from ernie45.train.workers import Workers


class Batch(NamedTuple):
    """Neighbouring parameters that one update handles together. key: what the caller told them apart by."""

    spans: list[Span]
    kind: ParameterKind
    key: Hashable

    @property
    def window(self) -> slice:
        return slice(self.spans[0].start, self.spans[-1].end)


class Optimizer:
    """Steps over flat parameters. A step may leave some out; their state then rests too."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, workers: Workers | None = None) -> None:
        """parameters: all that ever learn; those that `config.frozen` names are left alone."""
        self.config = config
        self._workers = workers or Workers()
        parameters = {name: parameter for name, parameter in parameters.items() if not is_frozen(name, config)}
        self._kinds = kinds_of(parameters, config)
        self.flat = FlatParameters(
            parameters, lambda name, parameter: _order(name, parameter, self._kinds[name]), self._workers
        )
        self._first = torch.zeros_like(self.flat.values)
        # Muon's matrices lie first and have no second moment.
        self._adam_spans = [span for span in self.flat.spans if not self._kinds[span.name].muon]
        self._adam_start = self._adam_spans[0].start if self._adam_spans else len(self._first)
        self._second = torch.zeros_like(self._first[self._adam_start :])
        self._adam_steps = {span.name: 0 for span in self._adam_spans}
        self._muon = MuonUpdates(self.flat, self._first, config)

    def select(self, trains: Callable[[str], bool], key: Callable[[str], Hashable] = lambda name: None) -> list[Batch]:
        """The batches of parameters that a step with this choice handles; parameters of different keys are never together."""
        batches: list[Batch] = []
        for span in self.flat.spans:
            if not trains(span.name):
                continue
            kind = self._kinds[span.name]
            before = batches[-1] if batches else None
            alike = (
                before is not None and before.kind == kind and before.key == key(span.name) and joins(before.spans[-1], span)
            )
            if alike and kind.muon and before is not None:
                before.spans.append(span)
            else:
                batches.append(Batch([span], kind, key(span.name)))
        return batches

    def norm(self, batches: Sequence[Batch]) -> Tensor:
        """Joint norm of the gradients of these parameters, over all processes' pieces; each whole tensor counts once."""
        spans = [span for batch in batches for span in batch.spans]
        norms = {span.name: self.flat.grads[span.start : span.end].norm() for span in spans}
        if not norms:
            return self.flat.grads.new_zeros(())
        if not self.flat.sharded:
            return torch.stack(list(norms.values())).norm()
        zero = self.flat.grads.new_zeros(1)
        pieces = torch.stack([zero[0], *(norms[span.name] for span in spans if span.axis is not None)]).square().sum()[None]
        self._workers.add(pieces)
        whole = torch.stack([zero[0], *(norms[span.name] for span in spans if span.axis is None)]).square().sum()
        return (pieces[0] + whole).sqrt()

    def clip(self, batches: Sequence[Batch]) -> Tensor:
        """Scale all gradients so that the joint norm of these is at most `clip_norm`; returns the norm before."""
        norm = self.norm(batches)
        self.flat.grads.mul_((self.config.clip_norm / norm.clamp_min(1e-12)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, batches: Sequence[Batch], lr_factors: Sequence[float]) -> None:
        """One update from the flat gradients. batches: from `select`; lr_factors: of the peak rate, for each batch."""
        muon = [batch.spans for batch in batches if batch.kind.muon]
        updates = self._muon(muon) if muon else self.flat.values
        for batch, factor in zip(batches, lr_factors, strict=True):
            lr = self.config.lr * factor * batch.kind.lr_ratio
            values = self.flat.values[batch.window]
            if batch.kind.decays:
                values.mul_(1 - lr * self.config.weight_decay)
            if batch.kind.muon:
                values.add_(updates[batch.window], alpha=-lr * update_scale(batch.spans[0].whole, self.config))
            else:
                self._adam(batch.spans[0], lr)
        self.flat.publish()

    def peak_lr(self, batch: Batch) -> float:
        """The rate of a batch at a factor of 1."""
        return self.config.lr * batch.kind.lr_ratio

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name; where parameters are dealt out, whole on rank 0 and nothing elsewhere."""
        state = {f"first.{name}": value for name, value in self.flat.by_name(self._first).items()}
        if self._adam_spans:
            state |= {f"second.{name}": value for name, value in self.flat.by_name(self._second, self._adam_spans).items()}
        return state | {f"steps.{name}": torch.tensor(steps) for name, steps in self._adam_steps.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.flat.fill(self._first, {span.name: state[f"first.{span.name}"] for span in self.flat.spans})
        if self._adam_spans:
            second = {span.name: state[f"second.{span.name}"] for span in self._adam_spans}
            self.flat.fill(self._second, second, self._adam_spans)
        self._adam_steps = {name: int(state[f"steps.{name}"]) for name in self._adam_steps}

    def _adam(self, span: Span, lr: float) -> None:
        """Adam without its decay, which `step` has applied."""
        config = self.config
        beta1, beta2 = config.adam_betas
        self._adam_steps[span.name] += 1
        steps = self._adam_steps[span.name]
        grads, first, values = (x[span.start : span.end] for x in (self.flat.grads, self._first, self.flat.values))
        second = self._second[span.start - self._adam_start : span.end - self._adam_start]
        first.lerp_(grads, 1 - beta1)
        second.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        deviation = (second / (1 - beta2**steps)).sqrt_().add_(config.adam_eps)
        values.addcdiv_(first, deviation, value=-lr / (1 - beta1**steps))


def _order(name: str, parameter: nn.Parameter, kind: ParameterKind) -> tuple:
    """Muon's matrices first, by shape; vision apart, as it has stages of its own."""
    return (not kind.muon, "vision_model." in name or "resampler_model." in name, tuple(parameter.shape[-2:]), name)
