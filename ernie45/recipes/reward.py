"""The `reward` stage: pairs, a model with a scalar head, and the pairwise loss put together.

Knows nothing about folders, processes or the command line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ernie45.config.reward_model import RewardConfig
from ernie45.data.preference import PairSet, collate_pairs
from ernie45.recipes.pairs import load_pairs
from ernie45.recipes.preference import describe
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.recipes.runner import write_model
from ernie45.train.loop import Trainer
from ernie45.train.objectives.reward_model import reward_metrics
from ernie45.train.preference import HeldOutPairs, Metrics
from ernie45.train.reward_model import RewardSettings, new_reward_head, reward_forward, reward_objective, write_reward_head
from ernie45.train.stage import Stage


def tiny() -> RewardConfig:
    """A reward for right answers and captions in the form that was asked for, for the tiny model."""
    return RewardConfig()


def build(context: BuildContext) -> Assembly:
    """The stage on the context's pairs, or on generated ones if there are none."""
    config: RewardConfig = context.config
    pairs = load_pairs(context)
    head = new_reward_head(context.model.config.hidden_size, config.seed)
    score = None if pairs.held_out is None else HeldOutPairs(pairs.held_out, _metrics_of(pairs.held_out), context.workers)
    stage = Stage(
        name="reward",
        schedule=config.schedule,
        batch=pairs.batches,
        forward=reward_forward,
        objective=reward_objective,
        objective_config=RewardSettings(config.reward, config.router),
        routers=config.router,
        evaluate=score,
        evaluate_every=config.pairs.evaluate_every,
    )

    def write(trainer: Trainer, out: Path) -> None:
        write_reward_head(trainer.modules["head"], out)
        write_model(trainer.model, context.source, out)

    modules = nn.ModuleDict({"model": context.model, "head": head})
    return Assembly(modules=modules, stages=[stage], write=write, describe=describe(config, pairs))


def _metrics_of(pairs: PairSet) -> Any:
    def metrics(modules: Any, places: Sequence[int]) -> Metrics:
        batch = collate_pairs([pairs[place] for place in places], (1.0, 1.0), 1.0)
        return reward_metrics(reward_forward(modules, batch).rewards_B2)

    return metrics
