"""The optimiser: Muon on matrices, stacked experts included, and AdamW on embeddings, gates, norms and biases.

Knows nothing about losses or schedules: it is given averaged gradients and the share of the peak rate. Processes share the
orthogonalisation, which is most of an update's cost: each does some of the matrices and all get the results.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie45.config.train import OptimConfig
from ernie45.train.flat import FlatParameters, Span, runs_of_equal_shape
from ernie45.train.workers import Workers

# Odd polynomial a x + b x^3 + c x^5 that drives singular values towards 1 (K. Jordan, Muon, 2024).
_NEWTON = (3.4445, -4.7750, 2.0315)
_VISION = re.compile(r"(vision_model|resampler_model)\.")
_ROUTER = re.compile(r"\.router\.weight$")
_NOT_MATRIX = re.compile(r"(embed_tokens|lm_head)\.weight$|\.router\.weight$|^head\.")


def orthogonalise(matrices_BMN: Tensor, steps: int) -> Tensor:
    """Nearly the nearest semi-orthogonal matrix of each [M, N] in a batch: singular values end between about 0.7 and 1.2.

    Newton-Schulz iteration on the side that is shorter. A zero matrix stays zero.
    """
    a, b, c = _NEWTON
    x = matrices_BMN / matrices_BMN.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class ParameterKind(NamedTuple):
    """How the optimiser treats a parameter. lr_ratio: of the peak rate. decays: whether weight decay applies."""

    muon: bool
    lr_ratio: float
    decays: bool


def kind_of(name: str, parameter: Tensor, config: OptimConfig) -> ParameterKind:
    """Matrices go to Muon, except embeddings, the head, the gates and a stage's own head. Vectors do not decay."""
    muon = parameter.ndim >= 2 and not _NOT_MATRIX.search(name)
    ratio = (1.0 if muon else config.adam_lr_ratio) * (config.vision_lr_ratio if _VISION.search(name) else 1.0)
    ratio *= config.router_lr_ratio if _ROUTER.search(name) else 1.0
    return ParameterKind(muon, ratio, parameter.ndim >= 2)


class Batch(NamedTuple):
    """Parameters that one update handles together: neighbours of one shape for Muon, else a single one."""

    spans: list[Span]
    kind: ParameterKind

    @property
    def window(self) -> slice:
        return slice(self.spans[0].start, self.spans[-1].end)

    @property
    def cost(self) -> int:
        """Multiplications of one Newton-Schulz iteration, about."""
        rows, columns = self.spans[0].shape[-2:]
        return (self.window.stop - self.window.start) * min(rows, columns)


class Optimizer:
    """Steps over flat parameters. `trains` may leave some out of a step; their state then rests too."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, workers: Workers | None = None) -> None:
        self.config = config
        self._workers = workers or Workers()
        kinds = {name: kind_of(name, parameter, config) for name, parameter in parameters.items()}
        self.flat = FlatParameters(parameters, lambda name, parameter: _order(name, parameter, kinds[name]))
        self._kinds = kinds
        self._first = torch.zeros_like(self.flat.values)
        self._second = torch.zeros_like(self.flat.values)
        self._adam_steps = {span.name: 0 for span in self.flat.spans}

    def select(self, trains: Callable[[str], bool]) -> list[Batch]:
        """The batches of parameters that a step with this choice handles."""
        batches: list[Batch] = []
        for run in runs_of_equal_shape([span for span in self.flat.spans if trains(span.name)]):
            for place, span in enumerate(run):
                kind = self._kinds[span.name]
                if place and kind.muon and batches[-1].kind == kind:
                    batches[-1].spans.append(span)
                else:
                    batches.append(Batch([span], kind))
        return batches

    def clip(self, spans: list[Span]) -> Tensor:
        """Scale the gradients of these parameters so that their joint norm is at most `clip_norm`; returns the norm before."""
        norm = torch.stack([self.flat.grads[span.start : span.end].norm() for span in spans]).norm()
        self.flat.grads.mul_((self.config.clip_norm / norm.clamp_min(1e-12)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, batches: list[Batch], lr_factor: float) -> None:
        """One update from the flat gradients. batches: from `select`."""
        muon = [batch for batch in batches if batch.kind.muon]
        updates = self._orthogonal_updates(muon)
        for batch in batches:
            lr = self.config.lr * lr_factor * batch.kind.lr_ratio
            values = self.flat.values[batch.window]
            if batch.kind.decays:
                values.mul_(1 - lr * self.config.weight_decay)
            if batch.kind.muon:
                values.add_(updates[batch.window], alpha=-lr * self.config.muon_rms * max(batch.spans[0].shape[-2:]) ** 0.5)
            else:
                self._adam(batch.spans[0], lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name."""
        flat = self.flat
        state = {f"first.{name}": value for name, value in flat.by_name(self._first).items()}
        state |= {f"second.{name}": value for name, value in flat.by_name(self._second).items()}
        return state | {f"steps.{name}": torch.tensor(steps) for name, steps in self._adam_steps.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for span in self.flat.spans:
            self._first[span.start : span.end].copy_(state[f"first.{span.name}"].flatten())
            self._second[span.start : span.end].copy_(state[f"second.{span.name}"].flatten())
            self._adam_steps[span.name] = int(state[f"steps.{span.name}"])

    def _orthogonal_updates(self, batches: list[Batch]) -> Tensor:
        """Nesterov momentum, orthogonalised, in the layout of the flat tensors; each process does its share.

        Scaled by sqrt(max(M, N)) * muon_rms, an update's root mean square is `muon_rms`, and one rate fits both optimisers.
        Source: J. Liu et al., Muon is Scalable for LLM Training, 2025.
        """
        config, workers = self.config, self._workers
        updates = torch.zeros_like(self.flat.values)
        load = [0] * workers.num_processes
        for batch in sorted(batches, key=lambda batch: -batch.cost):
            grads, momentum = self.flat.grads[batch.window], self._first[batch.window]
            momentum.lerp_(grads, 1 - config.muon_momentum)
            owner = load.index(min(load))
            load[owner] += batch.cost
            if owner == workers.rank:
                ahead = grads.lerp(momentum, config.muon_momentum).view(-1, *batch.spans[0].shape[-2:])
                updates[batch.window] = orthogonalise(ahead, config.newton_steps).reshape(-1)
        workers.add(updates)
        return updates

    def _adam(self, span: Span, lr: float) -> None:
        """Adam without its decay, which `step` has applied."""
        config = self.config
        beta1, beta2 = config.adam_betas
        window = slice(span.start, span.end)
        self._adam_steps[span.name] += 1
        steps = self._adam_steps[span.name]
        grads, first, second, values = (x[window] for x in (self.flat.grads, self._first, self._second, self.flat.values))
        first.lerp_(grads, 1 - beta1)
        second.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        deviation = (second / (1 - beta2**steps)).sqrt_().add_(config.adam_eps)
        values.addcdiv_(first, deviation, value=-lr / (1 - beta1**steps))


def _order(name: str, parameter: nn.Parameter, kind: ParameterKind) -> tuple:
    """Muon's matrices first, by shape; vision apart, as it has stages of its own."""
    return (not kind.muon, bool(_VISION.search(name)), tuple(parameter.shape[-2:]), name)
