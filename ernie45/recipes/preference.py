"""The `dpo` stage: pairs, reference, forward and objective put together.

Knows nothing about folders, processes or the command line.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ernie45.config.preference import DPOConfig, PreferenceConfig
from ernie45.data.preference import PairSet, PreferenceBatch, collate_pairs
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.recipes.adapters import adapter_writer
from ernie45.recipes.pairs import Pairs, load_pairs
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.train.lora import num_parameters, trained_modules, with_lora
from ernie45.train.objectives.preference import pair_metrics
from ernie45.train.preference import (
    HeldOutPairs,
    Metrics,
    PreferenceOutputs,
    PreferenceSettings,
    ReferenceStore,
    answer_logprobs,
    pairs_of,
    preference_objective,
)
from ernie45.train.stage import Stage

Reference = Callable[[Any, PreferenceBatch], Tensor | None]
"""(modules, batch) -> the reference's log-probabilities [B, 2], or None where no loss needs one."""


def tiny() -> DPOConfig:
    """Captions in the form that was asked for and right answers over wrong ones, for the tiny model."""
    # At the usual beta of 0.1 and without the chosen answers' own loss the taste spreads to what was not asked for.
    return DPOConfig(preference=PreferenceConfig(beta=0.5, sft_weight=1.0))


def build(context: BuildContext) -> Assembly:
    """The stage on the context's pairs, or on generated ones if there are none."""
    config: DPOConfig = context.config
    pairs = load_pairs(context)
    references = _References(context, pairs)
    reference = references.of_training()
    modules = trained_modules(context.model, config.lora, config.router, config.seed)
    baseline = _Baseline(context, pairs, reference) if "kto_pair" in dict(config.preference.weighted_losses()) else None

    def batch(step: int, shard: int) -> PreferenceBatch:
        drawn = pairs.batches(step, shard)
        # As many seeds of dropout as there are shards, none twice.
        noise = (config.seed << 40) + step * config.loop.num_shards + shard
        return replace(drawn, language=replace(drawn.language, noise=noise))

    def forward(modules: Any, batch: PreferenceBatch) -> PreferenceOutputs:
        known_B2 = reference(modules, batch)
        policy_B2, routers = policy_logprobs(modules, batch)
        kl_2 = None if baseline is None else baseline.means_2
        return PreferenceOutputs(pairs_of(batch, policy_B2, known_B2, kl_2), routers)

    score = None
    if pairs.held_out is not None:
        score = HeldOutPairs(pairs.held_out, _held_out_metrics(config, pairs.held_out, references), context.workers)
    stage = Stage(
        name="dpo",
        schedule=config.schedule,
        batch=batch,
        forward=forward,
        objective=preference_objective,
        objective_config=PreferenceSettings(config.preference, config.router),
        routers=config.router,
        before_step=None if baseline is None else lambda step: baseline.measure(modules, step),
        evaluate=score,
        evaluate_every=config.pairs.evaluate_every,
    )
    facts = describe(config, pairs) | {"parameters": num_parameters(modules)}
    write = adapter_writer(context) if config.lora.rank else None
    return Assembly(modules=modules, stages=[stage], write=write, describe=facts, prepare=references.fill)


def policy_logprobs(modules: Any, batch: PreferenceBatch) -> tuple[Tensor, list[list[RouterOutput]]]:
    """`answer_logprobs` of what is trained: the model, with the adapter under training if there is one."""
    return answer_logprobs(modules["model"], replace(batch, language=with_lora(modules, batch.language)))


def describe(config: Any, pairs: Pairs) -> dict[str, Any]:
    """Facts of a stage on pairs, for `--dry-run`."""
    train, held_out = pairs.batches.pairs, pairs.held_out
    return {
        "num_steps": config.schedule.num_steps,
        "pairs": len(train),
        "pairs_left_out": len(train.skipped),
        "held_out_pairs": 0 if held_out is None else len(held_out),
        "epochs": round(config.schedule.num_steps * config.pairs.pairs_per_step / len(train), 2),
    }


class _References:
    """How the reference's log-probabilities are had. What comes from the initial model is computed by `fill`."""

    def __init__(self, context: BuildContext, pairs: Pairs) -> None:
        self._context, self._pairs = context, pairs
        self.held_out: dict[str, tuple[float, float]] | None = None

    def fill(self) -> None:
        """Compute or read what is stored: of the held-out pairs, and with "precomputed" of all."""
        config, pairs, context = self._context.config.preference, self._pairs, self._context
        if not config.needs_reference:
            return
        store = ReferenceStore(context.folder, context.model, context.workers)
        if config.reference == "precomputed":
            pairs.batches.reference = store.fill(pairs.batches.pairs)
        if pairs.held_out is not None:
            self.held_out = store.fill(pairs.held_out)

    def of_training(self) -> Reference:
        """For the batches of training; those of "precomputed" come with them."""
        config = self._context.config.preference
        if not config.needs_reference:
            return lambda modules, batch: None
        if config.reference == "precomputed":
            return _stored
        return _Frozen(self._context.model) if config.reference == "frozen" else _adapter_off


def _stored(modules: Any, batch: PreferenceBatch) -> Tensor:
    """What came with the batch. Without it every log-ratio would be a log-probability, and nothing would tell."""
    assert batch.reference_B2 is not None, "the stage was not prepared"
    return batch.reference_B2


@torch.no_grad()
def _adapter_off(modules: Any, batch: PreferenceBatch) -> Tensor:
    """The model without its adapter, which only `policy_logprobs` puts into a batch."""
    return answer_logprobs(modules["model"], batch)[0]


class _Frozen:
    """A copy of the model as it is now."""

    def __init__(self, model: ErnieModel) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, modules: Any, batch: PreferenceBatch) -> Tensor:
        return answer_logprobs(self._model, batch)[0]


class _Baseline:
    """KTO's two means over all pairs of a step, by one more pass without gradient, so that shards and processes agree."""

    def __init__(self, context: BuildContext, pairs: Pairs, reference: Reference) -> None:
        self._batches, self._reference, self._workers = pairs.batches, reference, context.workers
        self._num_shards = context.config.loop.num_shards
        self._by_token = context.config.preference.length_normalised
        self.means_2 = torch.zeros(2)

    @torch.no_grad()
    def measure(self, modules: Any, step: int) -> dict[str, float]:
        """Set the means for a step; they are logged."""
        totals_3 = torch.zeros(3)
        for shard in self._workers.shards(self._num_shards):
            batch = self._batches(step, shard)
            policy_B2, _ = policy_logprobs(modules, batch)
            pairs = pairs_of(batch, policy_B2, self._reference(modules, batch))
            pairs = pairs.by_token() if self._by_token else pairs
            totals_3 += torch.stack([pairs.chosen_ratio_B.sum(), pairs.rejected_ratio_B.sum(), torch.tensor(float(len(batch)))])
        self._workers.add(totals_3)
        self.means_2 = totals_3[:2] / totals_3[2]
        return {"kl_chosen": float(self.means_2[0]), "kl_rejected": float(self.means_2[1])}


def _held_out_metrics(config: DPOConfig, pairs: PairSet, references: _References) -> Callable[[Any, Sequence[int]], Metrics]:
    """Implicit rewards of held-out pairs, and how often the chosen answer is the likelier one (`likelier_accuracy`).

    The reference is always that of before training.
    """

    def metrics(modules: Any, places: Sequence[int]) -> Metrics:
        batch, known = collate_pairs([pairs[place] for place in places], (1.0, 1.0), 1.0), references.held_out
        assert known is not None or not config.preference.needs_reference, "the stage was not prepared"
        reference_B2 = None if known is None else torch.tensor([known[pairs.facts[place].key] for place in places])
        policy_B2, _ = policy_logprobs(modules, batch)
        found = pair_metrics(pairs_of(batch, policy_B2, reference_B2), config.preference)
        return found | {"likelier_accuracy": ((policy_B2[:, 0] > policy_B2[:, 1]).sum(), len(batch))}

    return metrics
