"""Forward passes of preference training: log-probabilities of both answers, by the policy and by a reference.

Knows nothing about losses or the loop.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ernie45.config.errors import StorageError
from ernie45.config.preference import PreferenceConfig
from ernie45.config.train import RouterConfig
from ernie45.data.preference import PairSet, PreferenceBatch, collate_pairs
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.logprobs import linear_logprobs
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.preference import PairLogProbs, PairWeights, preference_loss
from ernie45.train.objectives.routing import gradient_only, router_losses
from ernie45.train.workers import Workers

REFERENCE_FILE = "reference.jsonl"
_SAMPLED = 4096
_PAIRS_AT_A_TIME = 256
PAIRS_PER_PASS = 16
"""Pairs of a forward pass without gradient."""


Metrics = dict[str, tuple[Tensor | float, float]]
"""name -> (sum, count)"""


class PreferenceOutputs(NamedTuple):
    """pairs: what the losses see. routers of every MoE layer."""

    pairs: PairLogProbs
    routers: list[list[RouterOutput]]


class PreferenceSettings(NamedTuple):
    """What the objective is told."""

    preference: PreferenceConfig
    router: RouterConfig


def answer_logprobs(model: ErnieModel, batch: PreferenceBatch) -> tuple[Tensor, list[list[RouterOutput]]]:
    """[B, 2] log-probabilities of the chosen and of the rejected answers, and what the routers did."""
    out = model(batch.packed)
    hidden_RD = out.hidden_TD.index_select(0, batch.language.rows_R)
    logprobs_R = linear_logprobs(hidden_RD, model.head_weight, batch.language.labels_R).logprobs_R
    sums = torch.zeros(2 * len(batch), dtype=logprobs_R.dtype, device=logprobs_R.device)
    return sums.index_add(0, batch.sequence_R, logprobs_R).view(-1, 2), out.routers


def pairs_of(
    batch: PreferenceBatch, policy_B2: Tensor, reference_B2: Tensor | None, kl_2: Tensor | None = None
) -> PairLogProbs:
    """What the losses see. Without a reference its log-probabilities are 0."""
    lengths_B2 = torch.bincount(batch.sequence_R, minlength=2 * len(batch)).view(-1, 2).to(policy_B2.dtype)
    reference_B2 = torch.zeros_like(policy_B2) if reference_B2 is None else reference_B2.to(policy_B2.dtype)
    return PairLogProbs(
        chosen_B=policy_B2[:, 0].clone(),  # what a sharded model gives on must not be a view
        rejected_B=policy_B2[:, 1].clone(),
        reference_chosen_B=reference_B2[:, 0],
        reference_rejected_B=reference_B2[:, 1],
        chosen_lengths_B=lengths_B2[:, 0],
        rejected_lengths_B=lengths_B2[:, 1],
        margins_B=batch.margins_B.to(policy_B2.dtype),
        kl_2=kl_2,
    )


def preference_objective(outputs: PreferenceOutputs, batch: PreferenceBatch, settings: PreferenceSettings) -> Loss:
    """`preference_loss` plus router losses (gradient only)."""
    weights = PairWeights(batch.pair_weight, batch.token_weight, batch.language.share)
    loss = preference_loss(outputs.pairs, weights, settings.preference)
    routers = router_losses(outputs.routers, settings.router, batch.language.share)
    return Loss(gradient_only(loss.loss, routers), loss.metrics)


def model_key(model: ErnieModel) -> str:
    """Changes with the weights: a hash of every tensor's name, shape and up to 4,096 of its numbers, evenly spread."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sampled = flat[:: max(1, len(flat) // _SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + sampled.numpy().tobytes())
    return digest.hexdigest()


def shared_out(num_pairs: int, workers: Workers) -> Iterator[tuple[list[int], bool]]:
    """This process's pairs of 0 ... num_pairs - 1, some at a time, and whether they count.

    Every process is given equally many passes, as sharded weights need all of them; a pass too many does not count.
    """
    own = range(workers.rank, num_pairs, workers.num_processes)
    most = -(-num_pairs // workers.num_processes)
    for start in range(0, most, PAIRS_PER_PASS):
        mine = list(own[start : start + PAIRS_PER_PASS])
        yield mine or [0], bool(mine)


class HeldOutPairs:
    """Metrics of pairs that are not trained on, the accuracy by source too where there are several."""

    def __init__(self, pairs: PairSet, metrics: Callable[[Any, Sequence[int]], Metrics], workers: Workers) -> None:
        """metrics: (the trainer's modules, places of pairs) -> sums and counts; called without gradient."""
        self._pairs, self._metrics, self._workers = pairs, metrics, workers

    @torch.no_grad()
    def __call__(self, modules: Any) -> dict[str, float]:
        """{"held_out_accuracy": ..., "held_out_accuracy/SOURCE": ...}; every process calls it and gets the same numbers."""
        sources = sorted({fact.source for fact in self._pairs.facts})
        totals: dict[str, Tensor] = {}
        for number, source in enumerate(sources):
            places = [place for place, fact in enumerate(self._pairs.facts) if fact.source == source]
            for own, counts in shared_out(len(places), self._workers):
                for name, (value, count) in self._metrics(modules, [places[index] for index in own]).items():
                    total = totals.setdefault(name, torch.zeros(len(sources), 2, dtype=torch.float64))
                    total[number] += counts * torch.tensor([float(value), float(count)], dtype=torch.float64)
        return self._means(totals, sources)

    def _means(self, totals: dict[str, Tensor], sources: list[str]) -> dict[str, float]:
        means = {}
        for name, total in sorted(totals.items()):
            self._workers.add(total)
            means[f"held_out_{name}"] = float(total[:, 0].sum() / total[:, 1].sum())
            if name.endswith("accuracy") and len(sources) > 1:
                means |= {f"held_out_{name}/{source}": float(total[i, 0] / total[i, 1]) for i, source in enumerate(sources)}
        return means


class ReferenceStore:
    """Log-probabilities of pairs by the initial model, in a file beside the run: one line a pair, under keys of their content.

    A pass that was cut goes on where it was, and a run that goes on does it not again.
    """

    def __init__(self, folder: Path, model: ErnieModel, workers: Workers) -> None:
        self._path, self._model, self._workers = folder / REFERENCE_FILE, model, workers
        self._model_key = model_key(model)
        self._known = self._read()

    def fill(self, pairs: PairSet) -> dict[str, tuple[float, float]]:
        """key -> (chosen, rejected) for all pairs; what is missing is computed now, shared among the processes."""
        missing = [place for place, fact in enumerate(pairs.facts) if fact.key not in self._known]
        for start in range(0, len(missing), _PAIRS_AT_A_TIME):
            self._compute(pairs, missing[start : start + _PAIRS_AT_A_TIME])
        return {fact.key: self._known[fact.key] for fact in pairs.facts}

    def _compute(self, pairs: PairSet, places: Sequence[int]) -> None:
        found_N2 = torch.zeros(len(places), 2)
        for own, counts in shared_out(len(places), self._workers):
            batch = collate_pairs([pairs[places[index]] for index in own], (1.0, 1.0), 1.0)
            with torch.no_grad():
                logprobs_B2 = answer_logprobs(self._model, batch)[0].float()
            if counts:
                found_N2[own] = logprobs_B2
        self._workers.add(found_N2)
        new = {pairs.facts[place].key: tuple(values) for place, values in zip(places, found_N2.tolist(), strict=True)}
        self._known |= new  # type: ignore[arg-type]
        if self._workers.rank == 0:
            self._append(new)

    def _read(self) -> dict[str, tuple[float, float]]:
        """Entries of this model; a line that a kill cut short is left out."""
        known: dict[str, tuple[float, float]] = {}
        if not self._path.exists():
            return known
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["model"] == self._model_key:
                known[entry["pair"]] = (entry["chosen"], entry["rejected"])
        return known

    def _append(self, new: dict) -> None:
        lines = [
            json.dumps({"model": self._model_key, "pair": key, "chosen": chosen, "rejected": rejected})
            for key, (chosen, rejected) in new.items()
        ]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(lines) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}; free space, then run again") from error
