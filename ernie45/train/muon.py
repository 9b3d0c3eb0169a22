"""Muon's update: momentum made orthogonal, matrix by matrix, with the work dealt out over processes.

Knows nothing about rates, decay or who calls.
"""

import torch
from torch import Tensor

from ernie45.config.train import OptimConfig
from ernie45.parallel.pieces import joined, piece_of, piece_shape
from ernie45.train.flat import FlatParameters, Span

# Odd polynomial a x + b x^3 + c x^5 that drives singular values towards 1 (K. Jordan, Muon, 2024).
_NEWTON = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_BMN: Tensor, steps: int) -> Tensor:
    """Nearly the nearest semi-orthogonal matrix of each [M, N] in a batch: singular values end between about 0.7 and 1.2.

    Newton-Schulz iteration on the side that is shorter. A zero matrix stays zero. torch.optim.Muon does the same to one matrix
    at a time, in bf16, and refuses tensors of three dimensions; the stacked experts of a layer are a batch of matrices, and one
    call for all of them is most of the speed, so this is not torch's (a test compares them).
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


def update_scale(whole: tuple[int, ...], config: OptimConfig) -> float:
    """What makes an update's root mean square `muon_rms` for any shape, so that one rate fits both optimisers.

    Source: J. Liu et al., Muon is Scalable for LLM Training, 2025.
    """
    return config.muon_rms * max(whole[-2:]) ** 0.5


class MuonUpdates:
    """Nesterov momentum, orthogonalised, in the layout of the flat tensors.

    Processes that hold the same matrices each do some of them and add up. Where matrices are dealt out, a stack whose first
    axis is dealt out needs nobody else: every process has whole experts. The pieces of any other matrix go to one process,
    chosen so that all have about as much to do, and come back changed.
    """

    def __init__(self, flat: FlatParameters, momentum: Tensor, config: OptimConfig) -> None:
        """momentum: flat; moved on by every call."""
        self._flat, self._momentum, self._config = flat, momentum, config

    def __call__(self, runs: list[list[Span]]) -> Tensor:
        """runs: neighbouring spans of one matrix shape."""
        updates = torch.zeros_like(self._flat.values)
        if self._flat.sharded:
            spans = [span for run in runs for span in run]
            for span in spans:
                self._momentum_of(slice(span.start, span.end))
            self._on_shards(updates, spans)
        else:
            self._shared(updates, runs)
        return updates

    def _momentum_of(self, window: slice) -> None:
        self._momentum[window].lerp_(self._flat.grads[window], 1 - self._config.muon_momentum)

    def _ahead(self, window: slice) -> Tensor:
        return self._flat.grads[window].lerp(self._momentum[window], self._config.muon_momentum)

    def _shared(self, updates: Tensor, runs: list[list[Span]]) -> None:
        """All processes have all matrices: each orthogonalises some of the runs, and all get the sum."""
        workers = self._flat.workers
        load = [0] * workers.num_processes
        for run in sorted(runs, key=lambda run: -_cost(run)):
            window = slice(run[0].start, run[-1].end)
            self._momentum_of(window)
            owner = load.index(min(load))
            load[owner] += _cost(run)
            if owner == workers.rank:
                ahead = self._ahead(window).view(-1, *run[0].shape[-2:])
                updates[window] = orthogonalise(ahead, self._config.newton_steps).reshape(-1)
        workers.add(updates)

    def _on_shards(self, updates: Tensor, spans: list[Span]) -> None:
        scattered = []
        for span in spans:
            if span.axis is not None and not (span.axis == 0 and len(span.whole) > 2):
                scattered.append(span)
            elif span.end > span.start:
                window = slice(span.start, span.end)
                ahead = self._ahead(window).view(-1, *span.whole[-2:])
                updates[window] = orthogonalise(ahead, self._config.newton_steps).reshape(-1)
        if scattered:
            self._exchange(updates, scattered)

    def _exchange(self, updates: Tensor, spans: list[Span]) -> None:
        """Pieces to the owner of each matrix, orthogonalised whole, pieces back: two messages to each process."""
        workers = self._flat.workers
        ranks = range(workers.num_processes)
        owned: list[list[Span]] = [[] for _ in ranks]
        load = [0] * len(ranks)
        for span in sorted(spans, key=lambda span: -_cost([span])):
            owner = load.index(min(load))
            load[owner] += _cost([span])
            owned[owner].append(span)
        mine = owned[workers.rank]
        shapes = [[_piece(span, rank, len(ranks)) for span in mine] for rank in ranks]
        outgoing = [[self._ahead(slice(span.start, span.end)) for span in spans] for spans in owned]
        arrived = [_cut(part, of) for part, of in zip(self._swap(outgoing, shapes), shapes, strict=True)]
        wholes = [self._whole(span, [pieces[place] for pieces in arrived]) for place, span in enumerate(mine)]
        answers = [
            [piece_of(whole, span.axis, rank, len(ranks)).reshape(-1) for span, whole in zip(mine, wholes, strict=True)]
            for rank in ranks
        ]
        back = [[span.shape for span in spans] for spans in owned]
        for spans, part, of in zip(owned, self._swap(answers, back), back, strict=True):
            for span, piece in zip(spans, _cut(part, of), strict=True):
                updates[span.start : span.end] = piece.reshape(-1)

    def _whole(self, span: Span, pieces: list[Tensor]) -> Tensor:
        """A matrix, or a stack of them, put together and orthogonalised."""
        matrices = joined(pieces, span.axis).view(-1, *span.whole[-2:])
        return orthogonalise(matrices, self._config.newton_steps).view(span.whole)

    def _swap(self, outgoing: list[list[Tensor]], shapes: list[list[tuple[int, ...]]]) -> list[Tensor]:
        """A flat vector from each process, made of pieces of these shapes, for one to each process."""
        vectors = [torch.cat(parts) if parts else self._momentum.new_empty(0) for parts in outgoing]
        return self._flat.workers.exchange(vectors, [sum(torch.Size(shape).numel() for shape in of) for of in shapes])


def _cost(run: list[Span]) -> int:
    """Multiplications of one Newton-Schulz iteration, about."""
    return sum(torch.Size(span.whole).numel() for span in run) * min(run[0].whole[-2:])


def _piece(span: Span, rank: int, num_processes: int) -> tuple[int, ...]:
    assert span.axis is not None
    return piece_shape(span.whole, span.axis, rank, num_processes)


def _cut(vector: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)] if shapes else []
