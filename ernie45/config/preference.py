"""Settings of preference training: the pairs, the losses of the DPO family with weights and options, and the reference.

Knows nothing about torch or how a loss is computed.
"""

from dataclasses import dataclass, field, fields

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.lora import LoraConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig

NEEDS_REFERENCE = {
    "sigmoid": True,
    "robust": True,
    "ipo": True,
    "hinge": True,
    "dpop": True,
    "nca_pair": True,
    "sppo_hard": True,
    "apo_zero": True,
    "apo_down": True,
    "kto_pair": True,
    "simpo": False,
    "orpo": False,
}
"""The losses, and whether each compares with a reference model."""

REFERENCES = ("precomputed", "frozen", "adapter_off", "none")

# Options that only some losses read: one that is changed must reach a loss, as nothing is accepted and ignored.
_READ_BY = {
    "label_smoothing": ("sigmoid", "robust", "simpo"),
    "offset": ("sigmoid",),
    "length_normalised": ("sigmoid", "robust", "hinge", "dpop", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "kto_pair"),
    "simpo_margin": ("simpo",),
    "dpop_weight": ("dpop",),
    "kto_chosen_weight": ("kto_pair",),
    "kto_rejected_weight": ("kto_pair",),
}


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """What is minimised over pairs; docs/preference.md has the formulas.

    losses: one or more of `NEEDS_REFERENCE`, each "name" or "name:weight". beta: strength of the pull to the reference
    (temperature of SimPO; ORPO has none). label_smoothing: share of pairs that may be the wrong way round. offset: how much
    reward the chosen answer must be ahead by, for each unit of the pair's margin. length_normalised: log-probabilities are by
    token. simpo_margin: gamma of SimPO. dpop_weight: lambda of DPOP. kto_*_weight: of the two sides in KTO. sft_weight: of the
    chosen answers' cross entropy, added. reference: log-probabilities of the initial model, "precomputed" in a pass before
    training, from a "frozen" copy of it, from the model with its "adapter_off", or "none" for losses without a reference.
    """

    losses: tuple[str, ...] = ("sigmoid",)
    beta: float = 0.1
    label_smoothing: float = 0.0
    offset: float = 0.0
    length_normalised: bool = False
    simpo_margin: float = 0.5
    dpop_weight: float = 50.0
    kto_chosen_weight: float = 1.0
    kto_rejected_weight: float = 1.0
    sft_weight: float = 0.0
    reference: str = "precomputed"

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weighted_losses()]
        if not self.beta > 0:
            raise ConfigError(f"beta ({self.beta!r}) must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing ({self.label_smoothing!r}) must be at least 0 and below 0.5")
        for name in ("offset", "simpo_margin", "dpop_weight", "kto_chosen_weight", "kto_rejected_weight", "sft_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} ({getattr(self, name)!r}) must be at least 0")
        for option in fields(self):
            readers, value = _READ_BY.get(option.name, names), getattr(self, option.name)
            if value != option.default and not set(readers) & set(names):
                raise ConfigError(
                    f"{option.name} ({value!r}) is read only by {', '.join(readers)}; losses are {', '.join(names)}: "
                    f"add one of those, or leave {option.name} at {option.default!r}"
                )
        self._check_reference(names)

    def _check_reference(self, names: list[str]) -> None:
        if self.reference not in REFERENCES:
            raise ConfigError(f"reference ({self.reference!r}) must be one of {', '.join(REFERENCES)}")
        needing = [name for name in names if NEEDS_REFERENCE[name]]
        if needing and self.reference == "none":
            raise ConfigError(f"reference ('none') does not do for {needing[0]}, which compares with one; use precomputed")

    @property
    def needs_reference(self) -> bool:
        """Whether any loss compares with the reference; where none does, none is computed."""
        return any(NEEDS_REFERENCE[name] for name, _ in self.weighted_losses())

    def weighted_losses(self) -> list[tuple[str, float]]:
        """Names and weights of the losses. ConfigError for an unknown one, a weight that is none, or none at all."""
        if not self.losses:
            raise ConfigError(f"losses (none) must name one at least, of {', '.join(NEEDS_REFERENCE)}")
        return list(map(_weighted, self.losses))


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which pairs, and how many at a time.

    pairs_per_step: of all shards together. evaluate_every: steps between two scores on held-out pairs, if there are any; the
    last step has one always. Without `--data` pairs are generated: generated of them to learn from, held_out to be scored on,
    with pictures of digits that are held out too; form_share of them are about the form of a caption, the others about the
    right answer.
    """

    pairs_per_step: int = 16
    evaluate_every: int = 60
    generated: int = 2000
    held_out: int = 200
    form_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("pairs_per_step", "evaluate_every", "generated", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pairs.{name} ({getattr(self, name)}) must be above 0")
        if not 0 <= self.form_share <= 1:
            raise ConfigError(f"pairs.form_share ({self.form_share}) must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference training. The routers' upkeep is off, as in supervised tuning."""

    seed: int = 0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=6e-5, router_lr_ratio=0.01, weight_decay=0.0))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(num_steps=120, warmup_ratio=0.06, decay_ratio=0.7, final_ratio=0.1)
    )
    router: RouterConfig = field(
        default_factory=lambda: RouterConfig(bias_rate=0, orthogonal_weight=0, aux_weight=0, z_weight=0)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_shards=1, processes=1))
    data: DataConfig = field(default_factory=DataConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.preference.reference == "adapter_off" and self.preference.needs_reference and not self.lora.rank:
            raise ConfigError(
                "preference.reference ('adapter_off') must have an adapter to switch off; set lora.rank, or use precomputed"
            )


def _weighted(text: str) -> tuple[str, float]:
    name, colon, number = text.partition(":")
    if name not in NEEDS_REFERENCE:
        raise ConfigError(f"losses ({name!r}) must be of {', '.join(NEEDS_REFERENCE)}")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"losses ({text!r}) must be NAME or NAME:WEIGHT with a weight above 0, as in {name}:0.5")
    return name, weight
