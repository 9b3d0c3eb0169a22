"""Settings of training: optimiser, schedule, router upkeep, the loop, and the tiny recipe that puts them together.

Knows nothing about torch, data or how any of it is done.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from ernie45.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Which optimiser trains what, and how fast.

    optimizer: "muon" (Muon on matrices, AdamW on everything else) or "adamw" (on everything). Only matrices decay.
    lr: peak, for both: Muon's update is scaled to the size of an AdamW update (root mean square `muon_rms`).
    vision_lr_ratio: of lr, for the vision tower with resampler; vision_layer_decay: of that for each block of the tower further
    from the language model. adam_lr_ratio: of lr, for what AdamW trains beside Muon; router_lr_ratio: of that again, for the
    fp32 gates (ERNIE: 0.01). lr_ratios: "pattern=ratio", a further ratio for names in which the regular expression is found;
    frozen: expressions for names that never train.
    clip_norm: largest global gradient norm. newton_steps: iterations of the orthogonalisation.
    """

    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 8e-3
    vision_lr_ratio: float = 0.5
    vision_layer_decay: float = 1.0
    adam_lr_ratio: float = 0.4
    router_lr_ratio: float = 0.4
    lr_ratios: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    muon_rms: float = 0.2
    muon_momentum: float = 0.95
    newton_steps: int = 5
    adam_betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-10
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _one_of(self, "optimizer", "muon", "adamw")
        _positive(self, "lr", "muon_rms", "newton_steps", "adam_eps", "clip_norm", "vision_layer_decay")
        _not_negative(self, "vision_lr_ratio", "adam_lr_ratio", "router_lr_ratio", "weight_decay")
        _share(self, "muon_momentum")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas ({self.adam_betas!r}) must be two numbers of at least 0 and below 1, as in 0.9,0.95")
        for pattern in (*self.frozen, *self.ratio_of_pattern()):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"pattern ({pattern!r}) is not a regular expression ({error}); mend it") from error

    def ratio_of_pattern(self) -> dict[str, float]:
        """`lr_ratios` read."""
        ratios = {}
        for text in self.lr_ratios:
            pattern, _, ratio = text.rpartition("=")
            try:
                ratios[pattern] = float(ratio)
            except ValueError:
                pattern = ""
            if not pattern or not ratios[pattern] >= 0:
                raise ConfigError(f"lr_ratios ({text!r}) must be PATTERN=RATIO, ratio at least 0, as in pools.vision=0.5")
        return ratios


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
    """How the rate goes over the steps of a stage.

    kind: "wsd": it rises linearly to a peak, stays, and falls with 1 - sqrt(progress) over the last decay_steps; "cosine": it
    rises, then falls along half a cosine to the end. peak: as a multiple of the optimiser's rate. final_ratio: what is left of
    the peak at the end. warmup_ratio, decay_ratio: shares of num_steps, in place of warmup_steps and decay_steps if above 0.
    """

    num_steps: int
    kind: Literal["wsd", "cosine"] = "wsd"
    peak: float = 1.0
    warmup_steps: int = 20
    decay_steps: int = 0
    warmup_ratio: float = 0.0
    decay_ratio: float = 0.0
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self, "kind", "wsd", "cosine")
        _positive(self, "num_steps", "peak")
        _not_negative(self, "warmup_steps", "decay_steps", "warmup_ratio", "decay_ratio", "final_ratio")
        if self.kind == "cosine" and (self.decay_steps or self.decay_ratio):
            raise ConfigError("decay_steps and decay_ratio must be 0 with kind cosine, which falls from the warm-up to the end")
        if self.warmup + self.decay > self.num_steps:
            raise ConfigError(
                f"warmup_steps ({self.warmup}) and decay_steps ({self.decay}) must fit into "
                f"num_steps ({self.num_steps}); shorten them"
            )

    @property
    def warmup(self) -> int:
        """Steps of the rise."""
        return round(self.warmup_ratio * self.num_steps) if self.warmup_ratio else self.warmup_steps

    @property
    def decay(self) -> int:
        """Steps of the fall."""
        if self.kind == "cosine":
            return self.num_steps - self.warmup
        # Rounded down: with the rounded warm-up it must fit.
        return int(self.decay_ratio * self.num_steps) if self.decay_ratio else self.decay_steps

    def factor(self, step: int) -> float:
        """What the optimiser's rate is multiplied by at a step (from 0). Source: ERNIE's WSD schedule."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        into_decay = step - (self.num_steps - self.decay)
        if into_decay < 0:
            return self.peak
        progress = (into_decay + 1) / self.decay
        falling = 1 - progress**0.5 if self.kind == "wsd" else (1 + math.cos(math.pi * progress)) / 2
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * falling)

    def over(self, num_steps: int) -> "ScheduleConfig":
        """The same course in fewer steps, for what trains in only some of a stage's steps; at least one."""
        num_steps = max(num_steps, 1)
        scale = num_steps / self.num_steps
        warmup = int(self.warmup * scale)
        decay = 0 if self.kind == "cosine" else int(self.decay * scale)
        shares = {"warmup_ratio": 0.0, "decay_ratio": 0.0}
        return replace(self, num_steps=num_steps, warmup_steps=warmup, decay_steps=decay, **shares)


FREE_TO_CHANGE = (
    *("processes", "shard", "recompute", "export_average"),
    *("checkpoint_seconds", "checkpoint_steps", "keep", "max_skips"),
)
"""Fields of LoopConfig with which a run may go on although they were others before: what is learnt stays the same."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop runs; none of it changes what is learnt, except `num_shards`, `ema_decay`, `precision` and the skips.

    num_shards: micro-batches a step, dealt out to the processes; so one process and two make the same run.
    precision: of the model; "bf16" keeps fp32 master weights, gates and sums of gradients. shard: "full": every process holds
    its part of weights and optimiser (FSDP2); "none": all of it. recompute: what a block's backward computes again instead of
    keeping: nothing, everything ("full"), or all but routing and attention ("routing").
    ema_decay: of the averaged weights that a stage may keep; export_average: they are what the run writes.
    checkpoint_seconds, checkpoint_steps: between two checkpoints, whichever comes first (steps 0: time alone); keep: how many.
    spike_mads: a loss this many median absolute deviations above the median of the last spike_window steps is a fault, as are
    NaN and infinity (0: only these); the run goes back to its last good state and leaves that step out, up to max_skips times.
    """

    num_shards: int = 2
    processes: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: Literal["none", "full"] = "none"
    recompute: Literal["none", "full", "routing"] = "none"
    ema_decay: float = 0.99
    export_average: bool = False
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int = 0
    keep: int = 1
    spike_mads: float = 0.0
    spike_window: int = 64
    max_skips: int = 10

    def __post_init__(self) -> None:
        _one_of(self, "precision", "fp32", "bf16")
        _one_of(self, "shard", "none", "full")
        _one_of(self, "recompute", "none", "full", "routing")
        _positive(self, "num_shards", "processes", "keep")
        _not_negative(self, "checkpoint_seconds", "checkpoint_steps", "spike_mads", "max_skips")
        _share(self, "ema_decay")
        if self.spike_window < 8:
            raise ConfigError(f"spike_window ({self.spike_window}) must be at least 8 steps, or a median means little")
        if self.num_shards % self.processes:
            raise ConfigError(
                f"processes ({self.processes}) must divide num_shards ({self.num_shards}); "
                f"use one of {[n for n in range(1, self.num_shards + 1) if self.num_shards % n == 0]}, or set loop.num_shards"
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
    """A copy with `a.b` -> text set; the text is read as the field's present type. ConfigError for an unknown key.

    All keys of a group are set at once, so their order never matters.
    """
    return _set(config, [(key.split("."), key, text) for key, text in overrides.items()])


_Setting = tuple[list[str], str, str]
"""Rest of the path, whole key, text."""


def _set(config: Any, settings: list[_Setting]) -> Any:
    names = [item.name for item in fields(config)]
    of_field: dict[str, list[_Setting]] = {}
    for path, key, text in settings:
        if path[0] not in names:
            raise ConfigError(f"config key ({key!r}) is unknown; {type(config).__name__} has {', '.join(names)}")
        of_field.setdefault(path[0], []).append((path[1:], key, text))
    return replace(config, **{name: _set_field(getattr(config, name), name, given) for name, given in of_field.items()})


def _set_field(old: Any, name: str, settings: list[_Setting]) -> Any:
    if isinstance(old, tuple) and len(old) and is_dataclass(old[0]):
        return _set_named(old, name, settings)
    for path, key, _ in settings:
        if is_dataclass(old) and not path:
            raise ConfigError(f"config key ({key!r}) is a group; set one of its fields, as in {key}.{fields(old)[0].name}=...")
        if path and not is_dataclass(old):
            raise ConfigError(f"config key ({key!r}) goes too deep: {name} is a value; use {name}=...")
    if is_dataclass(old):
        return _set(old, settings)
    _, key, text = settings[-1]
    return _parse(old, text, key)


def _set_named(items: tuple, name: str, settings: list[_Setting]) -> tuple:
    """`phases.joint.steps`: one of several groups, by its `name`."""
    names = [item.name for item in items]
    of_item: dict[str, list[_Setting]] = {}
    for path, key, text in settings:
        if len(path) < 2 or path[0] not in names:
            raise ConfigError(f"config key ({key!r}) must be {name}.NAME.FIELD, NAME one of {', '.join(names)}")
        of_item.setdefault(path[0], []).append((path[1:], key, text))
    return tuple(_set(item, of_item[item.name]) if item.name in of_item else item for item in items)


def _parse(old: Any, text: str, key: str) -> Any:
    kind = type(old)
    try:
        if kind is tuple:  # "none": an empty one
            parts = [] if text.lower() == "none" else [part.strip() for part in text.split(",") if part.strip()]
            element = type(old[0]) if old else str
            return tuple(element(part) for part in parts)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{key} ({text!r}) must be of type {kind.__name__}, like {old!r}") from error
    raise ConfigError(f"{key} is of type {kind.__name__}, which cannot be set from the command line; use a recipe in Python")


def _one_of(config: object, name: str, *values: str) -> None:
    if getattr(config, name) not in values:
        raise ConfigError(f"{name} ({getattr(config, name)!r}) must be one of {', '.join(values)}")


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
