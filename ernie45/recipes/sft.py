"""Supervised fine-tuning: which data, which forward, which loss.

Knows nothing about folders, processes or the command line.
"""

from collections.abc import Callable

from torch import nn

from ernie45.config.errors import ConfigError
from ernie45.config.sft import SFTConfig
from ernie45.data.packing import LanguageBatch
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.digits import DigitSet, training_digits
from ernie45.data.tiny.model import tiny_config
from ernie45.evals.heldout import heldout_digits
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.recipes.tiny import WEIGHTS
from ernie45.train.held_out import HeldOut
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.stage import Stage


def tiny() -> SFTConfig:
    """Answers with and without thoughts, for the tiny model."""
    return SFTConfig()


def build(context: BuildContext) -> Assembly:
    """The stage on the context's files, or on generated conversations if there are none."""
    config: SFTConfig = context.config
    batch, held_out = _generated(context)
    every = config.held_out.every
    stage = Stage(
        name="sft",
        schedule=config.schedule,
        batch=batch,
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=config.router,
        routers=config.router,
        evaluate=HeldOut(held_out, config.held_out.batches, context.workers) if every else None,
        evaluate_every=every,
    )
    describe = {"num_steps": config.schedule.num_steps, "data": "generated"}
    return Assembly(modules=nn.ModuleDict({"model": context.model}), stages=[stage], describe=describe)


def _generated(context: BuildContext) -> tuple[Callable[[int, int], LanguageBatch], Callable[[int], LanguageBatch]]:
    """Batches of training and of the held-out loss: other digits."""
    config: SFTConfig = context.config
    if context.model.config.vocab_size != tiny_config().vocab_size:
        raise ConfigError("--data must be given: the generated conversations are for the tiny model alone; name a file")

    def batches(name: str, digits: DigitSet, num_shards: int) -> LanguageBatches:
        data = LanguageData(
            name=name,
            seed=config.seed,
            weights=_weights(config.generated.skills),
            thinking_share=config.generated.thinking_share,
            whole_text=False,
            token_budget=config.generated.token_budget,
            num_shards=num_shards,
        )
        return LanguageBatches(data, digits, context.processor)

    held_out = batches("held out", heldout_digits(), 1)
    return batches("sft", training_digits("fit"), config.loop.num_shards), lambda number: held_out(number, 0)


def _weights(skills: str) -> dict[str, float]:
    """The shipped recipe's share of each named skill. ConfigError for a name that is none."""
    names = list(WEIGHTS) if skills == "all" else [name.strip() for name in skills.split(",")]
    for name in names:
        if name not in WEIGHTS:
            raise ConfigError(f"generated.skills ({name!r}) must be all, or among {', '.join(WEIGHTS)}")
    return {name: WEIGHTS[name] for name in names}
