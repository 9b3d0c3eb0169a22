"""Parameters of several modules as one flat fp32 tensor, with a flat gradient beside it: the master weights.

Knows nothing about optimisers. One flat gradient makes zeroing, clipping and all-reduce single calls, and matrices of one
shape lie side by side, so that an optimiser takes them as one batch. A model that computes in another dtype, or whose tensors
are dealt out over processes, holds copies of its own: gradients are collected from them and values published to them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie45.parallel.pieces import axis_of, joined, local, piece_of, piece_shape
from ernie45.train.workers import Workers


class Span(NamedTuple):
    """A parameter's place in the flat tensors.

    shape: of what this process holds of it; whole: of all of it; axis: which one is dealt out over processes, or None.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    axis: int | None = None

    @property
    def end(self) -> int:
        return self.start + torch.Size(self.shape).numel()


class FlatParameters:
    """values, grads: flat fp32, equal in length.

    `.data` and `.grad` of a plain fp32 parameter are views of them from now on, so gradients must be zeroed with `zero_grad`
    here and never set to None. Any other parameter keeps its own memory: `collect` adds its gradient to the flat one after each
    backward pass, in fp32, and `publish` copies the values to it, rounded to its dtype.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        order: Callable[[str, nn.Parameter], tuple],
        workers: Workers | None = None,
    ) -> None:
        """order: sort key; parameters with neighbouring keys become neighbours."""
        named = sorted(parameters.items(), key=lambda item: order(*item))
        self.workers = workers or Workers()
        total = sum(local(parameter.detach()).numel() for _, parameter in named)
        device = named[0][1].device if named else None
        self.values = torch.empty(total, dtype=torch.float32, device=device)
        self.grads = torch.zeros(total, dtype=torch.float32, device=device)
        self.spans: list[Span] = []
        self._copies: list[tuple[Span, nn.Parameter]] = []
        start = 0
        for name, parameter in named:
            mine, axis = local(parameter.detach()), axis_of(parameter)
            span = Span(name, start, tuple(mine.shape), tuple(parameter.shape), axis)
            self.values[start : span.end].copy_(mine.flatten())
            if axis is None and parameter.dtype == torch.float32:
                parameter.data = self.view(self.values, span)
                parameter.grad = self.view(self.grads, span)
            else:
                self._copies.append((span, parameter))
            self.spans.append(span)
            start = span.end

    @property
    def sharded(self) -> bool:
        """Whether some parameter is dealt out over the processes."""
        return any(span.axis is not None for span in self.spans)

    def view(self, flat: Tensor, span: Span) -> Tensor:
        """A parameter's part of a flat tensor in its shape."""
        return flat[span.start : span.end].view(span.shape)

    def zero_grad(self) -> None:
        self.grads.zero_()

    @torch.no_grad()
    def collect(self) -> None:
        """Take the gradients of one backward pass from parameters with memory of their own."""
        for span, parameter in self._copies:
            if parameter.grad is not None:
                self.view(self.grads, span).add_(local(parameter.grad))
                parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the values to parameters with memory of their own."""
        for span, parameter in self._copies:
            local(parameter).copy_(self.view(self.values, span))

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set all values from whole tensors by name."""
        self.fill(self.values, values)
        self.publish()

    def fill(self, flat: Tensor, values: Mapping[str, Tensor], spans: Sequence[Span] | None = None) -> None:
        """Set another flat tensor (an average, a moment) from whole tensors by name. spans: neighbours that it is of."""
        spans = self.spans if spans is None else spans
        for span in spans:
            mine = piece_of(values[span.name], span.axis, self.workers.rank, self.workers.num_processes)
            _view(flat, span, spans).copy_(mine)

    def state_dict(self) -> dict[str, Tensor]:
        """The values by name, whole; see `by_name`."""
        return self.by_name(self.values)

    def by_name(self, flat: Tensor, spans: Sequence[Span] | None = None) -> dict[str, Tensor]:
        """A flat tensor as whole tensors by name: parts of one copy on the host. spans: neighbours that it is of; None: all.

        Where parameters are dealt out every process must call it, and rank 0 alone gets them; the others get nothing.
        """
        spans = self.spans if spans is None else spans
        assert len(flat) == sum(span.end - span.start for span in spans), (flat.shape, len(spans))
        copy = flat.cpu() if flat.device.type != "cpu" else flat.clone()
        if not self.sharded:
            return {span.name: _view(copy, span, spans) for span in spans}
        parts = self.workers.gather(copy)
        return {} if parts is None else _joined(parts, spans)


def _view(flat: Tensor, span: Span, spans: Sequence[Span]) -> Tensor:
    offset = spans[0].start
    return flat[span.start - offset : span.end - offset].view(span.shape)


def _joined(parts: list[Tensor], spans: Sequence[Span]) -> dict[str, Tensor]:
    """Whole tensors by name from the flat tensors of all processes."""
    starts = [0] * len(parts)
    by_name = {}
    for span in spans:
        pieces = []
        for rank, part in enumerate(parts):
            shape = span.whole if span.axis is None else piece_shape(span.whole, span.axis, rank, len(parts))
            end = starts[rank] + torch.Size(shape).numel()
            pieces.append(part[starts[rank] : end].view(shape))
            starts[rank] = end
        by_name[span.name] = joined(pieces, span.axis)
    return by_name


def joins(one: Span, other: Span) -> bool:
    """Whether two spans are neighbours of one matrix shape: together they are one batch of matrices."""
    return one.end == other.start and one.whole[-2:] == other.whole[-2:]
