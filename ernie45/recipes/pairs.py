"""The pairs that a preference stage learns from and is scored on: the user's files, or generated ones for the tiny model.

Knows nothing about losses.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.preference import DPOConfig
from ernie45.config.reward_model import RewardConfig
from ernie45.data.dataset import Dataset
from ernie45.data.preference import PairBatches, PairSet
from ernie45.data.records import Pair
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_config
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter
from ernie45.evals.monitor import scored_pairs
from ernie45.recipes.registry import BuildContext

# What of the data's settings makes sense for pairs, whose batches are `pairs.pairs_per_step` pairs.
_READ = ("format", "loss_on", "thinking", "template", "context", "on_bad", "allow_remote", "token_budget")


class Pairs(NamedTuple):
    """batches: to learn from. held_out: to be scored on, if there are any."""

    batches: PairBatches
    held_out: PairSet | None


def load_pairs(context: BuildContext) -> Pairs:
    """The context's pairs, all looked at once. DataError and ConfigError for what cannot be used."""
    config: DPOConfig | RewardConfig = context.config
    for option in fields(DataConfig):
        if option.name not in _READ and getattr(config.data, option.name) != option.default:
            raise ConfigError(f"data.{option.name} ({getattr(config.data, option.name)!r}) is not read for pairs; leave it out")
    longest = min(config.data.max_tokens, context.model.config.max_position_embeddings)
    encoder = RecordEncoder(context.processor, replace(config.data, context=longest))
    pairs, held_out = _from_files(context) if context.data or context.eval_data else _generated(context)

    def usable(given: Sequence[Pair]) -> PairSet:
        found = PairSet(given, encoder.encode, config.data.on_bad == "skip")
        if found.skipped and context.workers.rank == 0:
            message = f"note: {len(found.skipped)} of {len(given)} pairs cannot be used and are left out; the first: "
            print(message + found.skipped[0], file=sys.stderr)
        return found

    batches = PairBatches(usable(pairs), config.pairs.pairs_per_step, config.loop.num_shards, config.seed)
    return Pairs(batches, None if held_out is None else usable(held_out))


def _from_files(context: BuildContext) -> tuple[Sequence[Pair], Sequence[Pair] | None]:
    if not context.data:
        raise ConfigError("--data must be given beside --eval-data; name a file of pairs to learn from")

    def read(paths: Sequence[Path]) -> Sequence[Pair]:
        return Dataset(paths, want=(Pair,), form=context.config.data.format)  # type: ignore[return-value]

    return read(context.data), read(context.eval_data) if context.eval_data else None


def _generated(context: BuildContext) -> tuple[list[Pair], list[Pair]]:
    config: DPOConfig | RewardConfig = context.config
    if context.model.config.vocab_size != tiny_config().vocab_size:
        raise ConfigError("--data must be given: the generated pairs are for the tiny model alone; name a file of pairs")
    count = config.pairs
    train = preference_pairs(f"{config.seed}/train", count.generated, StripWriter(training_digits()), count.form_share)
    return train, scored_pairs(count.held_out, count.form_share)
