"""Batches of the phases of pretraining: from files in one global order, or generated documents.

Knows nothing about models or what learns.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ernie45.config.errors import ConfigError
from ernie45.config.pretrain import PhaseConfig, PretrainConfig, pairs
from ernie45.data.ledger import Ledger
from ernie45.data.order import Alternation, GlobalOrder, Part
from ernie45.data.stream import Corpus, StreamKind, StreamPlan, StreamSource
from ernie45.data.tiny.batches import SightBatches
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.documents import DocumentBatches, DocumentData
from ernie45.data.tiny.model import tiny_processor
from ernie45.recipes.registry import BuildContext
from ernie45.recipes.tiny import WEIGHTS
from ernie45.train.stage import Stateful


class PhaseData(NamedTuple):
    """batch: (step, shard) -> batch. stateful: for checkpoints. tokens: of a shard at most."""

    batch: Callable[[int, int], Any]
    stateful: Mapping[str, Stateful]
    tokens: int


def generated(context: BuildContext, phases: list[PhaseConfig]) -> tuple[list[PhaseData], dict[str, Any]]:
    """The built-in documents for each phase, and facts about them. ConfigError for a model with another tokenizer."""
    config: PretrainConfig = context.config
    if len(context.processor.tokenizer) != len(tiny_processor().tokenizer):
        raise ConfigError("--data must be given: the generated documents are for the tiny model's tokenizer alone; name a file")
    digits = training_digits(config.digits)

    def of_phase(phase: PhaseConfig) -> PhaseData:
        if phase.learns == "sight":
            # A picture has about 30 patches' worth of tokens with its text.
            num_pictures = max(phase.token_budget // 32, 1)
            return PhaseData(SightBatches(config.seed, num_pictures, digits, config.loop.num_shards), {}, phase.token_budget)
        if phase.context > phase.token_budget:
            raise ConfigError(
                f"phases.{phase.name}.context ({phase.context}) must be at most token_budget ({phase.token_budget}); "
                "change one of them"
            )
        data = DocumentData(
            name=phase.name,
            seed=config.seed,
            weights=pairs(phase.mixture, f"phases.{phase.name}.mixture") or WEIGHTS,
            thinking=config.thinking,
            shows=phase.shows_pictures,
            blind=phase.blind,
            token_budget=phase.token_budget,
            context=phase.context,
            token_balanced=config.data.weighting == "token_balanced",
            num_shards=config.loop.num_shards,
        )
        return PhaseData(DocumentBatches(data, digits, context.processor), {}, phase.token_budget)

    return [of_phase(phase) for phase in phases], {"data": "generated documents"}


def from_files(context: BuildContext, phases: list[PhaseConfig]) -> tuple[list[PhaseData], dict[str, Any]]:
    """The files in one global order that goes on from phase to phase; with a mixture of its own a phase has its own order."""
    config: PretrainConfig = context.config
    corpus = Corpus(context.data, context.processor, config.data, context.folder, config.seed)
    orders: dict[tuple[StreamKind, tuple[str, ...]], GlobalOrder] = {}
    found = []
    source: StreamSource | None = None
    for phase in phases:
        if phase.learns == "sight":
            raise ConfigError(f"phases.{phase.name}.learns ('sight') is for the built-in data alone; use language with --data")
        kinds = _kinds(phase)
        for kind in kinds:
            if (kind, phase.mixture) not in orders:
                orders[kind, phase.mixture] = _order(corpus, kind, phase)
        plan = _plan(context, phase)
        ledger = Ledger(context.folder) if context.workers.rank == 0 else None
        source = StreamSource(corpus, plan, {kind: orders[kind, phase.mixture] for kind in kinds}, ledger, follows=source)
        found.append(PhaseData(source, {"data": source}, config.data.record_tokens * plan.context_records))
    return found, {"data": [str(path) for path in context.data], "corpus": corpus.describe()}


def _kinds(phase: PhaseConfig) -> tuple[StreamKind, ...]:
    """Orders that the phase reads."""
    return ("texts", "pictures") if phase.text_steps or phase.picture_steps else ("all",)


def _order(corpus: Corpus, kind: StreamKind, phase: PhaseConfig) -> GlobalOrder:
    counts = corpus.counts(kind)
    wanted = {"texts": phase.text_steps, "pictures": phase.picture_steps}.get(kind, 1)
    if not counts and wanted:
        raise ConfigError(
            f"phases.{phase.name} wants {kind}, and the data files have none; give some with --data, "
            f"or leave the phase out with --set phases.{phase.name}.enabled=false"
        )
    if not counts:  # the plan has both kinds, but no step asks for this one
        kind, counts = "all", corpus.counts("all")
    weights = pairs(phase.mixture, f"phases.{phase.name}.mixture")
    unknown = sorted(set(weights) - set(corpus.sources))
    if unknown:
        raise ConfigError(
            f"phases.{phase.name}.mixture ({unknown[0]}) must name a source; there are {', '.join(corpus.sources)}"
        )
    chosen = {name: weight for name, weight in weights.items() if name in counts}
    return corpus.order(kind, (Part(weights=chosen),) if chosen else None)


def _plan(context: BuildContext, phase: PhaseConfig) -> StreamPlan:
    config: PretrainConfig = context.config
    records, rest = divmod(phase.context or config.data.record_tokens, config.data.record_tokens)
    if rest:
        raise ConfigError(
            f"phases.{phase.name}.context ({phase.context}) must be a multiple of data.record_tokens "
            f"({config.data.record_tokens}); change one of them"
        )
    num_shards = config.loop.num_shards
    alternates = bool(phase.text_steps or phase.picture_steps)
    steps = {"text_steps": phase.text_steps, "picture_steps": phase.picture_steps}
    return StreamPlan(
        phase=phase.name,
        num_shards=num_shards,
        context_records=records,
        shards=tuple(context.workers.shards(num_shards)),
        alternation=Alternation(**steps) if alternates else None,
        num_steps=phase.schedule.num_steps,
    )
