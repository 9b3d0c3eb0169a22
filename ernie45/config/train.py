"""Settings of training: optimiser, schedule, router upkeep, the loop, and the tiny recipe that puts them together.

Knows nothing about torch, data or how any of it is done.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from ernie45.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Muon on matrices, AdamW on everything else.

    lr: peak, for both: Muon's update is scaled to the size of an AdamW update (root mean square `muon_rms`).
    vision_lr_ratio: of lr, for the vision tower with resampler. adam_lr_ratio: of it, for what AdamW trains; router_lr_ratio:
    of that again, for the fp32 gates.
    clip_norm: largest global gradient norm. newton_steps: iterations of the orthogonalisation.
    """

    lr: float = 8e-3
    vision_lr_ratio: float = 0.5
    adam_lr_ratio: float = 0.4
    router_lr_ratio: float = 0.4
    muon_rms: float = 0.2
    muon_momentum: float = 0.95
    newton_steps: int = 5
    adam_betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-10
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "lr", "muon_rms", "newton_steps", "adam_eps", "clip_norm")
        _share(self, "muon_momentum")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Upkeep of the routers, each pool on its own.

    bias_rate: step u of the correction bias, b += u * sign(mean usage - usage). orthogonal_weight: lambda of the orthogonal
    step after the optimiser. aux_weight, z_weight: lambdas of the two losses; 0 leaves them out. vision_*_ratio: of these, for
    the vision pool.
    """

    bias_rate: float = 1e-2
    orthogonal_weight: float = 1e-2
    aux_weight: float = 1e-4
    z_weight: float = 1e-5
    vision_bias_ratio: float = 1.0
    vision_orthogonal_ratio: float = 1.0
    vision_aux_ratio: float = 1.0
    vision_z_ratio: float = 1.0

    def __post_init__(self) -> None:
        _not_negative(self, *(item.name for item in fields(self)))

    def of_pool(self, name: str, modality: str) -> float:
        """A setting ("bias_rate", "aux_weight", ...) for the pool of that modality."""
        ratio = getattr(self, f"vision_{name.rpartition('_')[0]}_ratio") if modality == "vision" else 1.0
        return getattr(self, name) * ratio


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, stable, decay: the rate rises linearly to a peak, stays, and falls with 1 - sqrt(progress).

    peak: as a multiple of the optimiser's rate. final_ratio: what is left of the peak at the end.
    """

    num_steps: int
    peak: float = 1.0
    warmup_steps: int = 20
    decay_steps: int = 0
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "num_steps", "peak")
        _not_negative(self, "warmup_steps", "decay_steps", "final_ratio")
        if self.warmup_steps + self.decay_steps > self.num_steps:
            raise ConfigError(
                f"warmup_steps ({self.warmup_steps}) and decay_steps ({self.decay_steps}) must fit into "
                f"num_steps ({self.num_steps}); shorten them"
            )

    def factor(self, step: int) -> float:
        """What the optimiser's rate is multiplied by at a step (from 0). Source: ERNIE's WSD schedule."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        into_decay = step - (self.num_steps - self.decay_steps)
        if into_decay < 0:
            return self.peak
        falling = 1 - ((into_decay + 1) / self.decay_steps) ** 0.5
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * falling)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop runs; none of it changes what is learnt, except `num_shards` and `ema_decay`.

    num_shards: micro-batches a step, dealt out to the processes; so one process and two make the same run.
    ema_decay: of the averaged weights that a stage may keep. checkpoint_seconds: time between two checkpoints.
    """

    num_shards: int = 2
    processes: int = 2
    ema_decay: float = 0.99
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        _positive(self, "num_shards", "processes")
        _share(self, "ema_decay")
        if self.num_shards % self.processes:
            raise ConfigError(
                f"processes ({self.processes}) must divide num_shards ({self.num_shards}); "
                f"use one of {[n for n in range(1, self.num_shards + 1) if self.num_shards % n == 0]}"
            )


@dataclass(frozen=True, kw_only=True)
class TinyTrainConfig:
    """The tiny recipe: 1 the vision tower alone, 2 all parts jointly on whole texts, 3 supervised, with the rate decaying.

    *_steps: of each stage. pictures: a shard of stage 1. token_budget: of a shard in stages 2 and 3. joint_thinking,
    supervised_thinking: share of samples that are answered with thoughts. held_out_prompts: a skill, for the scores at the end.
    digits: "all", or "fit" while one chooses between recipes. average: the shipped weights are the averaged ones.
    """

    seed: int = 0
    vision_steps: int = 500
    joint_steps: int = 200
    supervised_steps: int = 1750
    pictures: int = 48
    token_budget: int = 1600
    joint_thinking: float = 0.6
    supervised_thinking: float = 0.65
    held_out_prompts: int = 100
    digits: Literal["all", "fit"] = "all"
    average: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _positive(self, "vision_steps", "joint_steps", "supervised_steps", "pictures", "token_budget", "held_out_prompts")


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON types."""
    return asdict(config)


def with_overrides(config: Any, overrides: dict[str, str]) -> Any:
    """A copy with `a.b` -> text set; the text is read as the field's present type. ConfigError for an unknown key."""
    for key, text in overrides.items():
        config = _set(config, key.split("."), text, key)
    return config


def _set(config: Any, path: list[str], text: str, key: str) -> Any:
    names = [item.name for item in fields(config)]
    if path[0] not in names:
        raise ConfigError(f"config key ({key!r}) is unknown; {type(config).__name__} has {', '.join(names)}")
    old = getattr(config, path[0])
    if isinstance(old, tuple) and len(old) and is_dataclass(old[0]):
        new = _set_named(old, path, text, key)
    elif is_dataclass(old):
        if len(path) == 1:
            raise ConfigError(f"config key ({key!r}) is a group; set one of its fields, as in {key}.{fields(old)[0].name}=...")
        new = _set(old, path[1:], text, key)
    elif len(path) > 1:
        raise ConfigError(f"config key ({key!r}) goes too deep: {path[0]} is a value; use {path[0]}=...")
    else:
        new = _parse(old, text, key)
    return type(config)(**{name: new if name == path[0] else getattr(config, name) for name in names})


def _set_named(items: tuple, path: list[str], text: str, key: str) -> tuple:
    """`phases.joint.steps`: one of several groups, by its `name`."""
    names = [item.name for item in items]
    if len(path) < 3 or path[1] not in names:
        raise ConfigError(f"config key ({key!r}) must be {path[0]}.NAME.FIELD, NAME one of {', '.join(names)}")
    return tuple(_set(item, path[2:], text, key) if item.name == path[1] else item for item in items)


def _parse(old: Any, text: str, key: str) -> Any:
    kind = type(old)
    try:
        if kind is tuple and all(isinstance(item, str) for item in old):  # "none": an empty one
            return () if text.lower() == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{key} ({text!r}) must be of type {kind.__name__}, like {old!r}") from error
    raise ConfigError(f"{key} is of type {kind.__name__}, which cannot be set from the command line; use a recipe in Python")


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} ({getattr(config, name)!r}) must be above 0")


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name} ({getattr(config, name)!r}) must be at least 0")


def _share(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} ({getattr(config, name)!r}) must be at least 0 and below 1")
