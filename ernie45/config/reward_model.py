"""Settings of a reward model that is learnt from pairs.

Knows nothing about torch or how it is done.
"""

from dataclasses import dataclass, field

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.preference import PairsConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """A scalar reward, learnt from pairs: -log sigmoid(reward of chosen - reward of rejected - margin_weight * margin).

    margin_weight: how far apart the rewards must be for each unit of a pair's margin. centring: weight of (sum of the two
    rewards)^2, which keeps rewards around 0 (Eisenstein et al., 2023: 0.01).
    """

    margin_weight: float = 0.0
    centring: float = 0.01

    def __post_init__(self) -> None:
        for name in ("margin_weight", "centring"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} ({getattr(self, name)!r}) must be at least 0")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Training of a reward model. The routers' upkeep is off, as in supervised tuning."""

    seed: int = 0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, router_lr_ratio=0.01))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(num_steps=200, warmup_ratio=0.05, decay_ratio=0.75, final_ratio=0.1)
    )
    router: RouterConfig = field(
        default_factory=lambda: RouterConfig(bias_rate=0, orthogonal_weight=0, aux_weight=0, z_weight=0)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_shards=1, processes=1))
    data: DataConfig = field(default_factory=DataConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
