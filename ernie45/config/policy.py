"""Settings of reinforcement learning: rollouts, choice of prompts, policy objective, critic, pair term.

Knows nothing about torch, the engine or how a loss is computed.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from ernie45.config.errors import ConfigError
from ernie45.config.lora import LoraConfig
from ernie45.config.preference import PreferenceConfig
from ernie45.config.rewards import RewardsConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig

ADVANTAGES = ("group", "group_mean", "leave_one_out", "gae")
RATIOS = ("token", "sequence")
NORMALISATIONS = ("token", "sequence", "constant")
MISMATCHES = ("none", "truncate", "mask")
KL_ESTIMATORS = ("k1", "k2", "k3")
CUT = ("keep", "mask", "shape")
ORDERS = ("shuffled", "difficulty")
ROLLOUT_DTYPES = ("same", "bfloat16")
THINKING = ("on", "off")
ON_BAD = ("skip", "stop")
DIGITS = ("all", "fit")
PAIR_REFERENCES = ("old", "frozen")
PAIR_SOURCES = ("online", "offline", "both")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are made, and how often they are learnt from.

    prompts           groups of answers that one update learns from.
    group_size        answers to one prompt.
    updates           updates that share one rollout, each with groups of its own.
    epochs            times that each answer is learnt from.
    temperature       of sampling; the log-probabilities of all of training are at this temperature.
    max_tokens        of an answer, thought included.
    thinking          whether prompts leave a thought open: on, off.
    context           tokens of prompt and answer together; a longer prompt is a bad record. 0: the model's own limit.
    dtype             same: the engine runs on the trainer's own weights, in place; bfloat16: on a copy that is brought up to
                      date before each rollout.
    replay_routing    the trainer's routers choose the experts that the engine's chose.
    max_num_seqs      answers that the engine writes at the same time.
    """

    prompts: int = 16
    group_size: int = 8
    updates: int = 1
    epochs: int = 1
    temperature: float = 1.0
    max_tokens: int = 64
    thinking: str = "on"
    context: int = 0
    dtype: str = "same"
    replay_routing: bool = False
    max_num_seqs: int = 128

    def __post_init__(self) -> None:
        for name in ("prompts", "group_size", "updates", "epochs", "temperature", "max_tokens", "max_num_seqs"):
            _above_zero("rollout", self, name)
        _one_of("rollout", self, "thinking", THINKING)
        _one_of("rollout", self, "dtype", ROLLOUT_DTYPES)
        if self.context < 0:
            raise ConfigError(f"rollout.context ({self.context}) must be at least 0; 0 is the model's own limit")

    @property
    def steps(self) -> int:
        """Updates from one rollout to the next."""
        return self.updates * self.epochs


class Lesson(NamedTuple):
    """From an update on, only prompts of these domains; none: all."""

    first_step: int
    domains: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Which prompts are asked.

    order        shuffled: each once before any twice; difficulty: more of those that the model now gets right half of the time.
    drop_equal   groups whose rewards are all equal teach nothing: leave them out, and ask others in their place.
    min_std      leave out groups whose rewards differ by no more than this standard deviation, likewise.
    max_refills  times that others are asked for one rollout; then it makes do with what there is.
    decay        of the running estimate of how often a prompt is answered right, for each time it is asked.
    curriculum   "math@0, math+code@100, *@300": from that update on, prompts of these domains ("*": all).
    on_bad       skip: a prompt that cannot be read or is too long is counted and left out; stop: it ends the run.
    """

    order: str = "shuffled"
    drop_equal: bool = True
    min_std: float = 0.0
    max_refills: int = 2
    decay: float = 0.7
    curriculum: str = ""
    on_bad: str = "skip"

    def __post_init__(self) -> None:
        _one_of("prompts", self, "order", ORDERS)
        _one_of("prompts", self, "on_bad", ON_BAD)
        if not 0 <= self.decay < 1:
            raise ConfigError(f"prompts.decay ({self.decay}) must be at least 0 and below 1")
        for name in ("min_std", "max_refills"):
            if getattr(self, name) < 0:
                raise ConfigError(f"prompts.{name} ({getattr(self, name)}) must be at least 0")
        self.lessons()

    def lessons(self) -> tuple[Lesson, ...]:
        """`curriculum` read. ConfigError for another form."""
        lessons = [_lesson(text.strip(), self.curriculum) for text in self.curriculum.split(",") if text.strip()]
        steps = [lesson.first_step for lesson in lessons]
        if lessons and (steps[0] != 0 or steps != sorted(set(steps))):
            raise ConfigError(f"prompts.curriculum ({self.curriculum!r}) must begin @0, each lesson later than the one before")
        return tuple(lessons)


@dataclass(frozen=True, kw_only=True)
class GeneratedPromptsConfig:
    """Prompts that the tiny recipe makes where no --data are given.

    count    how many there are.
    skills   of the tiny model, all alike.
    digits   all of training's, or fit, while one chooses between settings.
    """

    count: int = 4096
    skills: tuple[str, ...] = ("sum2", "sum3", "sum4")
    digits: str = "all"

    def __post_init__(self) -> None:
        _above_zero("generated", self, "count")
        _one_of("generated", self, "digits", DIGITS)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The objective; docs/rlvr.md has the formulas and their sources.

    advantage        group: reward less the group's mean, over its standard deviation; group_mean: without the division;
                     leave_one_out: less the mean of the others; gae: from a critic.
    ratio            of new to old probability, by token, or of the whole sequence (its geometric mean over the tokens).
    clip_low, clip_high  a ratio outside of 1 - low ... 1 + high has no more effect.
    dual_clip        largest ratio that counts where the advantage is negative; 0: none.
    normalise        loss is a mean over all tokens of the step; or over its sequences of their mean; or a sum over
                     sequences times max_tokens, a constant.
    kl_weight, kl_estimator  of the distance to the initial model; 0: none, and no such model is kept.
    mismatch         where the trainer's probability of a token differs from the engine's that drew it: none: nothing; truncate:
                     their ratio, at most mismatch_high, weighs the token's loss; mask: so too, and a token outside of
                     mismatch_low ... mismatch_high counts nothing.
    mismatch_ratio   that ratio by token, or of the whole sequence (the product over its tokens).
    cut              an answer cut off by max_tokens: keep it; mask: it teaches nothing; shape: reward falls in a straight line
                     over the last cut_tokens before max_tokens, by 1 at the end.
    whiten           advantages of a step to mean 0 and standard deviation 1 (gae only).
    """

    advantage: str = "group"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    normalise: str = "sequence"
    kl_weight: float = 0.0
    kl_estimator: str = "k3"
    mismatch: str = "none"
    mismatch_ratio: str = "token"
    mismatch_low: float = 0.5
    mismatch_high: float = 2.0
    cut: str = "keep"
    cut_tokens: int = 16
    whiten: bool = True

    def __post_init__(self) -> None:
        choices = {
            "advantage": ADVANTAGES,
            "ratio": RATIOS,
            "normalise": NORMALISATIONS,
            "kl_estimator": KL_ESTIMATORS,
            "mismatch": MISMATCHES,
            "mismatch_ratio": RATIOS,
            "cut": CUT,
        }
        for name, values in choices.items():
            _one_of("policy", self, name, values)
        for name in ("clip_low", "clip_high", "dual_clip", "kl_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"policy.{name} ({getattr(self, name)!r}) must be at least 0")
        if self.dual_clip and self.dual_clip < 1 + self.clip_high:
            raise ConfigError(
                f"policy.dual_clip ({self.dual_clip}) must be at least 1 + clip_high ({1 + self.clip_high}), or 0"
            )
        if not 0 < self.mismatch_low < 1 < self.mismatch_high:
            raise ConfigError(
                f"policy.mismatch_low and mismatch_high ({self.mismatch_low}, {self.mismatch_high}) must be between 0 and 1, "
                "and above 1"
            )
        _above_zero("policy", self, "cut_tokens")


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The head that tells the value of a state, for `policy.advantage=gae`.

    hidden_size   width of its one hidden layer over the model's last hidden state, which gets no gradient from it.
    gamma, lam    discount of later rewards; of later errors (lambda of GAE).
    clip          a value farther from the old one than this does not lower the loss; 0: no bound.
    weight        of its loss.
    """

    hidden_size: int = 64
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("hidden_size", "weight"):
            _above_zero("critic", self, name)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"critic.{name} ({getattr(self, name)}) must be from 0 to 1")
        if self.clip < 0:
            raise ConfigError(f"critic.clip ({self.clip}) must be at least 0; 0 is no bound")


@dataclass(frozen=True, kw_only=True)
class RLVRConfig:
    """Reinforcement learning from rewards that can be verified."""

    seed: int = 0
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(num_steps=200, warmup_steps=5))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.0))
    router: RouterConfig = field(
        default_factory=lambda: RouterConfig(bias_rate=0.0, orthogonal_weight=0.0, aux_weight=0.0, z_weight=0.0)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_shards=2, processes=1))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    generated: GeneratedPromptsConfig = field(default_factory=GeneratedPromptsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.lora.rank and self.rollout.dtype != "same":
            raise ConfigError(f"rollout.dtype ({self.rollout.dtype!r}) must be same with lora.rank above 0; leave one out")
        if self.lora.dropout:
            raise ConfigError(f"lora.dropout ({self.lora.dropout}) must be 0: the engine that writes answers has none")
        size, advantage = self.rollout.group_size, self.policy.advantage
        if size < 2 and advantage != "gae":
            raise ConfigError(
                f"rollout.group_size ({size}) must be at least 2 for policy.advantage={advantage}, which compares answers; "
                "raise it, or use gae"
            )
        if self.policy.cut == "shape" and self.policy.cut_tokens >= self.rollout.max_tokens:
            raise ConfigError(
                f"policy.cut_tokens ({self.policy.cut_tokens}) must be below rollout.max_tokens ({self.rollout.max_tokens})"
            )


@dataclass(frozen=True, kw_only=True)
class PairTermConfig:
    """The pair term of UPO; docs/upo.md has the formula.

    weight        lambda of the term.
    source        online: best and worst answer of each group; offline: pairs made beforehand; both.
    beta          strength of the pull to the reference.
    reference     old: the policy that wrote the rollout; frozen: the initial model.
    by_token      log-probabilities of an answer are divided by its length.
    sft_weight    of the better answers' cross entropy, inside the term.
    offline       pairs made beforehand that one update learns from.
    generated     number of pairs that the tiny recipe makes where no --data has any.
    """

    weight: float = 0.1
    source: str = "online"
    beta: float = 0.1
    reference: str = "old"
    by_token: bool = False
    sft_weight: float = 0.0
    offline: int = 16
    generated: int = 1024

    def __post_init__(self) -> None:
        _one_of("pairs", self, "source", PAIR_SOURCES)
        _one_of("pairs", self, "reference", PAIR_REFERENCES)
        for name in ("weight", "beta", "offline", "generated"):
            _above_zero("pairs", self, name)
        if not self.sft_weight >= 0:
            raise ConfigError(f"pairs.sft_weight ({self.sft_weight!r}) must be at least 0")

    @property
    def preference(self) -> PreferenceConfig:
        """The term as a preference loss."""
        return PreferenceConfig(beta=self.beta, sft_weight=self.sft_weight, length_normalised=self.by_token)


@dataclass(frozen=True, kw_only=True)
class UPOConfig(RLVRConfig):
    """Unified preference optimisation: a policy objective with a pair term, in one batch."""

    pairs: PairTermConfig = field(default_factory=PairTermConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.group_size < 2 and self.pairs.source != "offline":
            raise ConfigError(
                f"rollout.group_size ({self.rollout.group_size}) must be at least 2 for pairs.source={self.pairs.source}, "
                "which takes the best and the worst answer; raise it, or use offline"
            )


def _lesson(text: str, whole: str) -> Lesson:
    domains, at, step = text.partition("@")
    names = tuple(name.strip() for name in domains.split("+"))
    if not (at and step.strip().isdigit() and all(names)):
        raise ConfigError(
            f"prompts.curriculum ({whole!r}) must be DOMAIN+DOMAIN@STEP, ..., as in 'math@0, math+code@100, *@300'"
        )
    return Lesson(int(step), () if names == ("*",) else names)


def _one_of(group: str, config: object, name: str, values: tuple[str, ...]) -> None:
    if getattr(config, name) not in values:
        raise ConfigError(f"{group}.{name} ({getattr(config, name)!r}) must be one of {', '.join(values)}; choose one")


def _above_zero(group: str, config: object, name: str) -> None:
    if not getattr(config, name) > 0:
        raise ConfigError(f"{group}.{name} ({getattr(config, name)!r}) must be above 0")
