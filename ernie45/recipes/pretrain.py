"""Pretraining: phases as data turned into stages of the loop.

Knows nothing about folders, processes or the command line.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from ernie45.config.errors import ConfigError
from ernie45.config.model import ExpertPoolConfig, ModelConfig
from ernie45.config.pretrain import PhaseConfig, PretrainConfig
from ernie45.config.train import LoopConfig, ScheduleConfig
from ernie45.data.packing import LanguageBatch
from ernie45.data.tiny.model import tiny_config, tiny_processor, write_processor_files
from ernie45.model.batch import PoolRows
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.recipes.pretrain_data import PhaseData, from_files, generated
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.recipes.runner import write_model
from ernie45.train.birth import birth_vision_experts
from ernie45.train.loop import Trainer
from ernie45.train.objectives.mtp import PredictingConfig, predicting_forward, predicting_loss
from ernie45.train.objectives.sight import sight_forward, sight_loss, word_counts
from ernie45.train.phase import SMALL, GradientGate, PhaseGroups
from ernie45.train.stage import Stage

_SMALL_LAYERS = 2


def tiny() -> PretrainConfig:
    """The report's stages for a new tiny model: text, tower, align, thaw, joint, long; about ten minutes on two cores."""

    def course(num_steps: int, **changes: Any) -> ScheduleConfig:
        return ScheduleConfig(num_steps=num_steps, **{"warmup_ratio": 0.05, "warmup_steps": 0} | changes)

    text = PhaseConfig(name="text", schedule=course(300), trains=("text",), text_steps=1, blind=True)
    tower = PhaseConfig(
        name="tower",
        schedule=course(350, peak=2.0, decay_ratio=0.3, final_ratio=0.3),
        decoder="small",
        trains=("tower", "resampler_model"),
        picture_steps=1,
    )
    align = PhaseConfig(name="align", schedule=course(150), trains=("vision_mixed",), picture_steps=1, births=True)
    thaw = replace(align, name="thaw", schedule=course(150), trains=("vision_mixed", "tower"), births=False)
    joint = PhaseConfig(name="joint", schedule=course(900), text_steps=1, picture_steps=4, average=True)
    long = replace(
        joint,
        name="long",
        schedule=course(150, warmup_ratio=0.0, decay_ratio=1.0, final_ratio=0.02),
        context=400,
        rope_theta=400.0,
    )
    loop = LoopConfig(num_shards=2, processes=1, export_average=True)
    return PretrainConfig(phases=(text, tower, align, thaw, joint, long), loop=loop)


def tiny_at_once() -> PretrainConfig:
    """The same steps with everything learning from the first one: what staging is compared with."""
    staged = tiny()
    steps = sum(phase.schedule.num_steps for phase in staged.phases[:-1])
    *_, joint, long = staged.phases
    joint = replace(joint, schedule=replace(joint.schedule, num_steps=steps))
    return replace(staged, phases=(joint, long))


def new_model(config: PretrainConfig) -> tuple[ErnieModel, Processor]:
    """The tiny shape with fresh weights of the config's seed."""
    model = ErnieModel(training_shape(replace(tiny_config(), num_mtp_layers=config.mtp_layers), config), device="cpu")
    model.init_weights(torch.Generator().manual_seed(config.seed))
    return model, tiny_processor()


def training_shape(shape: ModelConfig, config: PretrainConfig) -> ModelConfig:
    """The shape as it trains: with pools="one" the two pools become one, with as many weights and as wide in the mean."""
    if config.pools == "two":
        return shape
    text, vision = shape.expert_pools
    width, odd = divmod(text.ffn_size + vision.ffn_size, 2)
    if odd or (text.num_experts, text.num_active) != (vision.num_experts, vision.num_active):
        raise ConfigError("pools ('one') must be of two pools with equally many experts and an even sum of widths; use two")
    one = ExpertPoolConfig(modality="text", num_experts=2 * text.num_experts, ffn_size=width, num_active=text.num_active)
    return replace(shape, expert_pools=(one,))


def build(context: BuildContext) -> Assembly:
    """One stage a phase, on the context's files or on generated documents."""
    config: PretrainConfig = context.config
    phases = [phase for phase in config.phases if phase.enabled]
    if context.source is not None and (config.mtp_layers or config.pools == "one"):
        raise ConfigError("mtp_layers and pools must stay as they are with --model, whose shape is given; leave them out")
    if config.loop.shard == "full" and any(phase.detach_text for phase in phases):
        raise ConfigError("detach_text (True) must be false with loop.shard=full: sharded weights have no switch; change one")
    modules = nn.ModuleDict({"model": context.model})
    if any(phase.decoder == SMALL for phase in phases):
        modules[SMALL] = small_decoder(context.model, config.seed)
    data, facts = (from_files if context.data else generated)(context, phases)
    stages = [_stage(context, phase, modules, of_phase) for phase, of_phase in zip(phases, data, strict=True)]
    return Assembly(modules=modules, stages=stages, write=_writer(context, phases), describe=_facts(phases, data) | facts)


def small_decoder(model: ErnieModel, seed: int) -> ErnieModel:
    """A shallow dense decoder of the model's width with the model's own tower and resampler: the tower's first teacher.

    The report's small language model is another one that is thrown away; with the same width the resampler can be kept.
    """
    changes = {"num_layers": _SMALL_LAYERS, "expert_pools": (), "shared_ffn_size": 0, "num_mtp_layers": 0, "vision": None}
    small = ErnieModel(replace(model.config, **changes), device="cpu")
    small.init_weights(torch.Generator().manual_seed(seed + 1))
    small.vision_model, small.resampler_model = model.vision_model, model.resampler_model
    return small


def _stage(context: BuildContext, phase: PhaseConfig, modules: nn.ModuleDict, data: PhaseData) -> Stage:
    config: PretrainConfig = context.config
    groups = PhaseGroups(phase, [name for name, _ in modules.named_parameters()])
    gate = GradientGate(groups) if config.loop.shard == "none" else None
    sight = phase.learns == "sight"
    return Stage(
        name=phase.name,
        schedule=phase.schedule,
        batch=data.batch,
        stateful=data.stateful,
        forward=_sight(context, gate) if sight else _forward(phase, gate, config),
        objective=sight_loss if sight else predicting_loss,
        objective_config=None if sight else PredictingConfig(config.router, config.mtp_weight),
        groups=groups.groups(),
        routers=config.router if phase.decoder == "model" and not sight else None,
        keeps_average=phase.average,
        before_step=_birth(context.model) if phase.births else None,
    )


def _forward(phase: PhaseConfig, gate: GradientGate | None, config: PretrainConfig) -> Callable[[Any, LanguageBatch], Any]:
    """Language: the phase's decoder on packed documents."""
    name = SMALL if phase.decoder == SMALL else "model"

    def forward(modules: Any, batch: LanguageBatch) -> Any:
        set_rope(modules["model"], phase)
        if gate is not None:
            gate.set(modules, batch.packed.vision is not None)
        return predicting_forward(modules[name], in_one_pool(batch) if config.pools == "one" else batch)

    return forward


def in_one_pool(batch: LanguageBatch) -> LanguageBatch:
    """The batch with every row, visual ones too, going to the text pool."""
    none = batch.packed.token_ids_T.new_empty(0)
    rows = {"text_rows": PoolRows(None, len(batch.packed)), "vision_rows": PoolRows(none, 0)}
    return replace(batch, packed=replace(batch.packed, **rows))


def _sight(context: BuildContext, gate: GradientGate | None) -> Callable[[Any, Any], Any]:
    counts_CV = word_counts(context.processor.tokenizer, context.model.config.vocab_size)

    def forward(modules: Any, batch: Any) -> Any:
        if gate is not None:
            gate.set(modules, True)
        return sight_forward(modules["model"], counts_CV, batch)

    return forward


def _birth(model: ErnieModel) -> Callable[[int], Mapping[str, float]]:
    def before(step: int) -> Mapping[str, float]:
        return {} if step else {"born_experts": birth_vision_experts(model)}

    return before


def set_rope(model: ErnieModel, phase: PhaseConfig) -> None:
    """The phase's base of the rotary positions; set in every forward, as a run may begin anywhere."""
    if phase.rope_theta and model.config.rope_theta != phase.rope_theta:
        model.config = replace(model.config, rope_theta=phase.rope_theta)


def _writer(context: BuildContext, phases: list[PhaseConfig]) -> Callable[[Trainer, Path], None]:
    """The model folder, in the shape of two pools; a finished run that is opened again has made no forward."""

    def write(trainer: Trainer, out: Path) -> None:
        for phase in phases:
            set_rope(trainer.model, phase)
        if context.source is None:
            write_processor_files(context.processor, out)
        write_model(as_two_pools(trainer.model, tiny_config().expert_pools[0].ffn_size), context.source, out)

    return write


def as_two_pools(model: ErnieModel, width: int | None = None) -> ErnieModel:
    """A model that trained in one pool, with a copy of that pool for each modality, as every engine expects.

    width: of an expert as written, the rest filled with zeros, which compute nothing: config.json counts shared experts by it.
    """
    if model.config.vision is None or len(model.config.expert_pools) == 2:
        return model
    (one,) = model.config.expert_pools
    wide = replace(one, ffn_size=width or one.ffn_size)
    two = ErnieModel(replace(model.config, expert_pools=(wide, replace(wide, modality="vision"))), device="cpu")
    state = dict(model.state_dict())
    missing = wide.ffn_size - one.ffn_size
    for name, value in model.state_dict().items():
        if name.endswith("gate_up_weight"):
            state[name] = torch.cat([pad(half_EFD, (0, 0, 0, missing)) for half_EFD in value.chunk(2, dim=1)], dim=1)
        elif name.endswith("pools.text.down_weight"):
            state[name] = pad(value, (0, missing))
    state |= {name.replace(".pools.text.", ".pools.vision."): value for name, value in state.items() if ".pools.text." in name}
    two.load_state_dict(state)
    return two


def _facts(phases: list[PhaseConfig], data: list[PhaseData]) -> dict[str, Any]:
    rows = zip(phases, data, strict=True)
    return {
        "phases": {
            phase.name: {"steps": phase.schedule.num_steps, "trains": list(phase.trains), "shard_tokens": of_phase.tokens}
            for phase, of_phase in rows
        }
    }
