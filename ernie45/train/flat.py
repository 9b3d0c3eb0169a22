"""Parameters of several modules moved into one flat tensor, with a flat gradient beside it.

Knows nothing about optimisers or processes. One flat gradient makes zeroing, clipping and all-reduce single calls, and
matrices of one shape lie side by side, so that an optimiser takes them as one batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Span(NamedTuple):
    """A parameter's place in the flat tensors."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + torch.Size(self.shape).numel()


class FlatParameters:
    """Parameters as views of one fp32 tensor.

    values, grads: flat, equal in length; every parameter's `.data` and `.grad` are views of them from now on, so gradients must
    be zeroed with `zero_grad` here and never set to None.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], order: Callable[[str, nn.Parameter], tuple]) -> None:
        """order: sort key; parameters with neighbouring keys become neighbours."""
        named = sorted(parameters.items(), key=lambda item: order(*item))
        total = sum(parameter.numel() for _, parameter in named)
        self.values = torch.empty(total, dtype=torch.float32)
        self.grads = torch.zeros(total, dtype=torch.float32)
        self.spans: list[Span] = []
        start = 0
        for name, parameter in named:
            assert parameter.dtype == torch.float32, (name, parameter.dtype)
            span = Span(name, start, tuple(parameter.shape))
            self.values[start : span.end].copy_(parameter.detach().flatten())
            parameter.data = self.values[start : span.end].view(span.shape)
            parameter.grad = self.grads[start : span.end].view(span.shape)
            self.spans.append(span)
            start = span.end

    def zero_grad(self) -> None:
        self.grads.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies by name, independent of the order here."""
        return {span.name: self.values[span.start : span.end].view(span.shape).clone() for span in self.spans}

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Another flat tensor of this layout (an average, a moment) as copies by name."""
        assert flat.shape == self.values.shape, (flat.shape, self.values.shape)
        return {span.name: flat[span.start : span.end].view(span.shape).clone() for span in self.spans}


def runs_of_equal_shape(spans: Sequence[Span]) -> list[list[Span]]:
    """Neighbouring spans whose last two dimensions agree: together they are one batch of matrices."""
    runs: list[list[Span]] = []
    for span in spans:
        if runs and runs[-1][-1].shape[-2:] == span.shape[-2:] and runs[-1][-1].end == span.start:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs
