"""The conversations that supervised tuning learns from and is scored on: the user's files, or generated ones.

Knows nothing about models, losses or adapters.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.sft import SFTConfig
from ernie45.data.dataset import Dataset
from ernie45.data.packing import LanguageBatch
from ernie45.data.records import Document, Record
from ernie45.data.sizes import Encoding
from ernie45.data.source import PackedSource
from ernie45.data.subset import split
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.digits import DigitSet, training_digits
from ernie45.data.tiny.model import tiny_config
from ernie45.evals.monitor import scored_conversations
from ernie45.recipes.registry import BuildContext
from ernie45.recipes.tiny import WEIGHTS


class Conversations(NamedTuple):
    """batch: (step, shard) -> batch to learn from. held_out: number -> batch, or None. facts: for people, plain JSON types."""

    batch: Callable[[int, int], LanguageBatch]
    held_out: Callable[[int], LanguageBatch] | None
    num_held_out: int
    facts: dict[str, Any]


def load_conversations(context: BuildContext) -> Conversations:
    """The context's conversations. DataError and ConfigError for what cannot be used."""
    if context.data:
        return _from_files(context)
    if context.eval_data:
        raise ConfigError("--data must be given beside --eval-data; name a file of conversations to learn from")
    return _generated(context)


def _from_files(context: BuildContext) -> Conversations:
    config: SFTConfig = context.config
    longest = context.model.config.max_position_embeddings
    if config.data.context > longest:
        raise ConfigError(f"data.context ({config.data.context}) must be at most {longest}, the model's context; lower it")
    data = replace(config.data, context=min(config.data.max_tokens, longest))
    # A whole text is trained on as a whole; an answer has to be answered.
    want = (Record, Document) if data.loss_on == "all" else (Record,)
    train = Dataset(context.data, want, data.format)
    held_out = Dataset(context.eval_data, want, data.format) if context.eval_data else None
    if config.held_out.share:
        if held_out is not None:
            raise ConfigError(f"held_out.share ({config.held_out.share}) must be 0 beside --eval-data; choose one of them")
        train, held_out = split(train, config.held_out.share, config.seed)
    shards = config.loop.num_shards
    source = _source(context, train, data, shards, "train")
    facts = source.describe() | {"held_out_records": 0 if held_out is None else len(held_out)}
    batch = _mixed(context, source) if config.generated.share else source
    if held_out is None or not config.held_out.every:
        return Conversations(batch, None, 0, facts)
    # One process reads what all are scored on, as it is read again and again.
    scored = _source(context, held_out, replace(data, weights=(), workers=0), 1, "held out")
    num_batches = min(config.held_out.batches, len(scored.plan.chunk(0)))
    return Conversations(batch, lambda number: scored(number, 0), num_batches, facts)


def _mixed(context: BuildContext, source: PackedSource) -> Callable[[int, int], LanguageBatch]:
    """Every so many steps a generated one; the files go on where they were."""
    config: SFTConfig = context.config
    share, generated = config.generated.share, _batches(context, "sft", training_digits("fit"), config.loop.num_shards)

    def batch(step: int, shard: int) -> LanguageBatch:
        before, after = int(step * share), int((step + 1) * share)
        drawn = generated(step, shard) if after > before else source(step - before, shard)
        # Metrics by source need the same names in every step.
        return replace(drawn, sources=(), source_R=None)

    return batch


def _source(context: BuildContext, dataset: Dataset, data: DataConfig, num_shards: int, name: str) -> PackedSource:
    encoding = Encoding(dataset, RecordEncoder(context.processor, data))
    source = PackedSource(
        encoding,
        seed=context.config.seed,
        num_shards=num_shards,
        shards=context.workers.shards(num_shards) if name == "train" else None,
        folder=_folder(context, name),
    )
    if len(source.bad) and context.workers.rank == 0:
        sys.stderr.write(
            f"note: {len(source.bad)} of {len(dataset)} records ({name}) cannot be used "
            f"and are left out; the first: {source.bad.first_reason}\n"
        )
    return source


def _folder(context: BuildContext, name: str) -> Path | None:
    """Where sizes and bad records are kept; a dry run has no folder and makes none."""
    if not context.folder.is_dir():
        return None
    folder = context.folder / "data" / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _generated(context: BuildContext) -> Conversations:
    """Conversations of the shipped model's recipe; the held-out ones are about other digits."""
    config: SFTConfig = context.config
    for option in ("weights", "patch_budget", "context"):
        if getattr(config.data, option):
            raise ConfigError(f"data.{option} ({getattr(config.data, option)!r}) is not read without --data; leave it out")
    if config.generated.share:
        raise ConfigError(f"generated.share ({config.generated.share}) must be 0 without --data: all is generated then")
    facts = {"generated": list(_weights(config.generated.skills))}
    scored = scored_conversations(_data(context, "held out", 1), context.processor) if config.held_out.every else None
    batch = _batches(context, "sft", training_digits("fit"), config.loop.num_shards)
    return Conversations(batch, scored, config.held_out.batches, facts)


def _batches(context: BuildContext, name: str, digits: DigitSet, num_shards: int) -> LanguageBatches:
    """Generated ones. ConfigError for a model that they are not made for."""
    return LanguageBatches(_data(context, name, num_shards), digits, context.processor)


def _data(context: BuildContext, name: str, num_shards: int) -> LanguageData:
    config: SFTConfig = context.config
    if context.model.config.vocab_size != tiny_config().vocab_size:
        raise ConfigError(
            "--data must be given, without generated.share: the generated conversations are for the tiny model alone"
        )
    return LanguageData(
        name=name,
        seed=config.seed,
        weights=_weights(config.generated.skills),
        thinking_share=config.generated.thinking_share,
        whole_text=False,
        token_budget=config.data.token_budget,
        num_shards=num_shards,
    )


def _weights(skills: tuple[str, ...]) -> dict[str, float]:
    """The shipped recipe's share of each named skill. ConfigError for a name that is none."""
    names = list(WEIGHTS) if skills == ("all",) else skills
    for name in names:
        if name not in WEIGHTS:
            raise ConfigError(f"generated.skills ({name!r}) must be all, or among {', '.join(WEIGHTS)}")
    return {name: WEIGHTS[name] for name in names}
