"""The prompts and pairs that a policy stage learns from: the user's files, or generated ones for the tiny model.

Knows nothing about rollouts or losses.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError, DataError
from ernie45.config.policy import PairTermConfig, RLVRConfig
from ernie45.data.dataset import Dataset
from ernie45.data.preference import PairBatches, PairSet
from ernie45.data.records import Pair, Prompt
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_config
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.prompts import TinyPrompts
from ernie45.data.tiny.strips import StripWriter
from ernie45.recipes.registry import BuildContext
from ernie45.train.prompts import Asked, PromptPool
from ernie45.train.rewards.system import RewardSystem


class PolicyData(NamedTuple):
    """pool: of prompts. offline: pairs made beforehand, where the stage learns from such. num_left_out: records not usable."""

    pool: PromptPool
    offline: PairBatches | None
    num_left_out: int


class _Found(NamedTuple):
    """Prompts by place with their domains, pairs, and what is wrong with other records."""

    prompt: Callable[[int], Prompt]
    domains: Sequence[str]
    pairs: Sequence[Pair]
    problems: list[str]


def load_policy_data(context: BuildContext, rewards: RewardSystem, term: PairTermConfig | None) -> PolicyData:
    """All records looked at once. DataError for a bad one, unless they are skipped, and if nothing is left."""
    config: RLVRConfig = context.config
    wants_pairs = term is not None and term.source != "online"
    found = _read(context, rewards, wants_pairs) if context.data else _generated(context, term if wants_pairs else None)
    longest = min(config.rollout.context or 2**30, context.model.config.max_position_embeddings)
    encoder = RecordEncoder(context.processor, DataConfig(context=longest, token_budget=longest))
    thinking = config.rollout.thinking == "on"

    def make(place: int) -> Asked:
        prompt = found.prompt(place)
        return Asked(prompt, encoder.prompt_input(prompt, thinking))

    offline, problems = None, found.problems
    if wants_pairs:
        assert term is not None
        if not found.pairs:
            raise DataError(
                f"--data must have preference pairs for pairs.source={term.source}; add a file of them or use online"
            )
        pairs = PairSet(found.pairs, encoder.encode, config.prompts.on_bad == "skip")
        offline = PairBatches(pairs, term.offline, config.loop.num_shards, config.seed)
        problems = problems + pairs.skipped
    if problems and context.workers.rank == 0:
        print(f"note: {len(problems)} records are left out; the first: {problems[0]}", file=sys.stderr)
    return PolicyData(PromptPool(found.domains, make), offline, len(problems))


def _read(context: BuildContext, rewards: RewardSystem, wants_pairs: bool) -> _Found:
    """From the user's files; pairs may stand in files of their own or among the prompts."""
    data = Dataset(context.data, want=(Prompt, Pair) if wants_pairs else (Prompt,))
    places, domains, pairs, problems = [], [], [], []
    for place in range(len(data)):
        try:
            record = data[place]
            if isinstance(record, Pair):
                pairs.append(record)
                continue
            assert isinstance(record, Prompt)
            rewards.check_domain(record.domain)
        except DataError as error:
            if context.config.prompts.on_bad == "stop":
                raise
            problems.append(str(error))
            continue
        places.append(place)
        domains.append(record.domain)
    if not places:
        raise DataError(f"--data: none of {len(data)} records is a usable prompt; the first: {(problems or ['a pair'])[0]}")
    return _Found(lambda number: data[places[number]], domains, pairs, problems)  # type: ignore[return-value]


def _generated(context: BuildContext, term: PairTermConfig | None) -> _Found:
    config: RLVRConfig = context.config
    if context.model.config.vocab_size != tiny_config().vocab_size:
        raise ConfigError("--data must be given: the generated prompts are for the tiny model alone; name a file of prompts")
    digits = training_digits("fit" if config.generated.digits == "fit" else "all")
    prompts = TinyPrompts(config.seed, config.generated.count, config.generated.skills, digits)
    pairs = [] if term is None else preference_pairs(f"{config.seed}/train", term.generated, StripWriter(digits))
    return _Found(prompts.__getitem__, prompts.domains, pairs, [])
