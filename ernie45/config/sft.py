"""Settings of supervised fine-tuning.

Knows nothing about torch, data or how any of it is done.
"""

from dataclasses import dataclass, field

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.lora import LoraConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """What is learnt without `--data`: conversations about generated pictures and numbers, those of the shipped model.

    skills: which. thinking_share: of the answers that come with thoughts. share: of the steps, beside `--data`, so that the
    tiny model keeps what it could.
    """

    skills: tuple[str, ...] = ("all",)
    thinking_share: float = 0.5
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"generated.share ({self.share}) must be at least 0 and below 1")
        if not 0 <= self.thinking_share <= 1:
            raise ConfigError(f"generated.thinking_share ({self.thinking_share}) must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """The loss on what is not trained on: `--eval-data`, or a share of `--data` that is taken out of it.

    every: steps between two measurements, 0: none. batches: of each, at most. share: of the records of `--data`, chosen by
    their numbers and the run's seed.
    """

    every: int = 50
    batches: int = 4
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"held_out.every ({self.every}) must be at least 0")
        if self.batches < 1:
            raise ConfigError(f"held_out.batches ({self.batches}) must be above 0; held_out.every=0 measures nothing")
        if not 0 <= self.share < 1:
            raise ConfigError(f"held_out.share ({self.share}) must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning: answers are learnt, questions are not.

    The routers' upkeep is off, as in ERNIE's public recipe: the correction biases stay as pretraining left them.
    """

    seed: int = 0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, router_lr_ratio=0.01))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(num_steps=300, warmup_ratio=0.03, decay_ratio=0.7, final_ratio=0.1)
    )
    router: RouterConfig = field(
        default_factory=lambda: RouterConfig(bias_rate=0.0, orthogonal_weight=0.0, aux_weight=0.0, z_weight=0.0)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_shards=1, processes=1))
    data: DataConfig = field(default_factory=lambda: DataConfig(token_budget=1600))
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
