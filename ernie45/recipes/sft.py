"""Supervised fine-tuning: which data, which forward, which loss.

Knows nothing about folders, processes or the command line.
"""

from dataclasses import replace
from typing import Any

from ernie45.config.sft import GeneratedConfig, SFTConfig
from ernie45.data.packing import LanguageBatch
from ernie45.recipes.adapters import adapter_writer
from ernie45.recipes.conversations import load_conversations
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.train.held_out import HeldOut
from ernie45.train.lora import num_parameters, trained_modules, with_lora
from ernie45.train.objectives.language import LanguageOutputs, language_forward, language_loss
from ernie45.train.stage import Stage


def tiny() -> SFTConfig:
    """Answers with and without thoughts, for the tiny model."""
    return SFTConfig()


def cold_start() -> SFTConfig:
    """First step of a vision-language model: to reason, learnt on text alone; every answer with thoughts."""
    return replace(SFTConfig(), generated=GeneratedConfig(skills=("arithmetic", "sentence"), thinking_share=1.0))


def vision() -> SFTConfig:
    """Second step: to reason about pictures, on answers that `ernie45 sample` has kept, with thoughts."""
    config = SFTConfig()
    return replace(config, data=replace(config.data, thinking="on"), generated=GeneratedConfig(thinking_share=1.0))


def fusion() -> SFTConfig:
    """Third step: answers with thoughts and without in one set, of which the template's switch picks one."""
    return SFTConfig()


def build(context: BuildContext) -> Assembly:
    """The stage on the context's files, or on generated conversations if there are none."""
    config: SFTConfig = context.config
    modules = trained_modules(context.model, config.lora, config.router, config.seed)
    conversations = load_conversations(context)

    def batch(step: int, shard: int) -> LanguageBatch:
        drawn = conversations.batch(step, shard)
        # As many seeds as there are shards, none twice.
        return replace(drawn, noise=(config.seed << 40) + step * config.loop.num_shards + shard)

    held_out = conversations.held_out
    stage = Stage(
        name="sft",
        schedule=config.schedule,
        batch=batch,
        forward=forward,
        objective=language_loss,
        objective_config=config.router,
        routers=config.router,
        evaluate=None if held_out is None else HeldOut(held_out, forward, conversations.num_held_out, context.workers),
        evaluate_every=config.held_out.every,
    )
    describe = {"num_steps": config.schedule.num_steps, "parameters": num_parameters(modules), "data": conversations.facts}
    write = adapter_writer(context) if config.lora.rank else None
    return Assembly(modules=modules, stages=[stage], write=write, describe=describe)


def forward(modules: Any, batch: LanguageBatch) -> LanguageOutputs:
    """The model, with the adapter under training if there is one."""
    return language_forward(modules["model"], with_lora(modules, batch))
