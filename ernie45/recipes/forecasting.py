"""The forecast of a dry run: memory, tokens and operations of each stage, for a model folder or a preset without weights.

Knows nothing about how a stage is built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from ernie45.config.model import ModelConfig
from ernie45.config.presets import PRESETS, preset
from ernie45.config.train import to_dict
from ernie45.model.multimodal import ErnieModel
from ernie45.train.forecast import Shard, memory_forecast, run_forecast
from ernie45.train.groups import group_table
from ernie45.train.plan import group_of
from ernie45.train.stage import Stage


def forecast(modules: nn.ModuleDict, stages: Sequence[Stage], config: Any, shard_tokens: Mapping[str, int]) -> dict[str, Any]:
    """Bytes by purpose, steps, tokens and operations by stage. shard_tokens: of a stage's shard at most; "" for the others.

    Memory is that of the largest shard, and of all that any stage trains: the loop keeps it from the first step on.
    """
    model = modules["model"]
    assert isinstance(model, ErnieModel)
    parameters = dict(modules.named_parameters())
    trained = {
        name: value
        for name, value in parameters.items()
        if value.requires_grad and any(group_of(stage, name) for stage in stages)
    }
    shards = {stage.name: Shard.of_budget(model.config, shard_tokens.get(stage.name, shard_tokens[""])) for stage in stages}
    largest = max(shards.values(), key=lambda shard: shard.tokens)
    return {
        "memory_bytes": memory_forecast(parameters, trained, model.config, config.optim, config.loop, largest),
        "largest_shard": asdict(largest),
        "stages": {
            stage.name: run_forecast(model.config, stage.schedule.num_steps, config.loop.num_shards, shards[stage.name])
            for stage in stages
        },
    }


def is_preset(model: str | None) -> bool:
    """Whether a name stands for a shape without weights."""
    return model in PRESETS and model != "tiny"


def preset_forecast(name: str, config: Any) -> dict[str, Any]:
    """The same for a preset whose every weight trains, built without memory: what a machine must have."""
    shape: ModelConfig = preset(name)
    modules = nn.ModuleDict({"model": ErnieModel(shape, device="meta")})
    parameters: dict[str, Tensor] = dict(modules.named_parameters())
    shard = Shard.of_budget(shape, tokens_of(config))
    num_steps = config.schedule.num_steps if hasattr(config, "schedule") else sum(p.schedule.num_steps for p in config.phases)
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "forecast": {
            "memory_bytes": memory_forecast(parameters, parameters, shape, config.optim, config.loop, shard),
            "largest_shard": asdict(shard),
            "run": run_forecast(shape, num_steps, config.loop.num_shards, shard),
        },
        "parameter_groups": group_table(parameters, config.optim, lambda _: 1.0),
        "config": to_dict(config),
    }


def tokens_of(config: Any, from_files: bool = True) -> int:
    """Tokens of a shard at most, from wherever a stage's config has its budget: of files, or of generated data."""
    places = [getattr(config, name, None) for name in (("data", "generated") if from_files else ("generated", "data"))]
    budgets = [getattr(place, name, 0) for place in (*places, config) for name in ("token_budget", "record_tokens")]
    return next((budget for budget in budgets if budget), 4096)
