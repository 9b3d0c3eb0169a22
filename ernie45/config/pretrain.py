"""Settings of pretraining: its phases as data, and what they have in common.

Knows nothing about torch, modules or where batches come from.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from ernie45.config.data import CorpusConfig
from ernie45.config.errors import ConfigError
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig

GROUPS = ("text", "vision_mixed", "tower")
"""Baidu's three parameter groups. tower: the vision tower. vision_mixed: resampler, vision experts and vision routers.
text: everything else (embeddings, attention, norms, dense and shared feed-forwards, text experts and routers)."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase: what learns, from which data, for how long.

    schedule        its steps and the course of the rate; peak: of this phase, as a multiple of optim.lr.
    enabled         false: the run has no such phase.
    decoder         which decoder the tower works for: the model's own, or a "small" dense one that is thrown away afterwards.
    learns          "language": next tokens of documents. "sight": each visual token says what it shows (built-in data alone).
    trains          parameter groups (`GROUPS`), or regular expressions on parameter names; the rest is frozen.
    lr_ratios       "group=multiple" of the phase's rate, the groups named as in `trains`.
    mixture         "name=weight" by source: of the files (`data.weights` if empty), or skills of the built-in data.
    text_steps, picture_steps  alternation: so many global batches of texts alone, then so many with pictures in every
                    sequence. 0 and 0: every batch has what the mixture gives. In batches of texts `vision_mixed` and `tower`
                    rest: they do not move, and their schedules stand still.
    blind           batches of texts also have the built-in documents about pictures, with the pictures left out: the words that
                    a frozen decoder must know before it can be shown anything.
    text_rests      in batches with pictures `text` rests too, as in Baidu's alternation of a language and a multimodal phase.
    detach_text     a shard with pictures gives `text` no gradients, but its schedule, momentum and decay go on: Baidu's
                    "modality detach".
    births          before the first step, vision experts become slices of the text experts.
    token_budget    tokens of a shard of the built-in data. context: of its longest document; 0: single short ones. Of files: of
                    a shard, a multiple of data.record_tokens; 0: one record.
    rope_theta      base of the rotary positions from here on; 0: as before.
    average         whether the averaged weights follow (loop.ema_decay, loop.export_average).
    """

    name: str
    schedule: ScheduleConfig
    enabled: bool = True
    decoder: Literal["model", "small"] = "model"
    learns: Literal["language", "sight"] = "language"
    trains: tuple[str, ...] = GROUPS
    lr_ratios: tuple[str, ...] = ()
    mixture: tuple[str, ...] = ()
    text_steps: int = 0
    picture_steps: int = 0
    blind: bool = False
    text_rests: bool = False
    detach_text: bool = False
    births: bool = False
    token_budget: int = 1600
    context: int = 0
    rope_theta: float = 0.0
    average: bool = False

    def __post_init__(self) -> None:
        _check(bool(re.fullmatch(r"[a-z][a-z0-9-]*", self.name)), "name", self.name, "be a small word")
        _check(self.decoder in ("model", "small"), "decoder", self.decoder, "be model or small")
        _check(self.learns in ("language", "sight"), "learns", self.learns, "be language or sight")
        _check(self.learns == "language" or self.decoder == "model", "decoder", self.decoder, "be model when learns is sight")
        _check(bool(self.trains), "trains", self.trains, f"name a group ({', '.join(GROUPS)}) or a pattern")
        alternation = (self.text_steps, self.picture_steps)
        _check(min(alternation) >= 0, "text_steps, picture_steps", alternation, "be at least 0")
        _check(self.token_budget > 0, "token_budget", self.token_budget, "be above 0")
        _check(self.context >= 0, "context", self.context, "be at least 0")
        _check(self.rope_theta >= 0, "rope_theta", self.rope_theta, "be at least 0")
        pairs(self.mixture, f"phases.{self.name}.mixture")
        for name in pairs(self.lr_ratios, f"phases.{self.name}.lr_ratios"):
            _check(name in self.trains, f"phases.{self.name}.lr_ratios", name, f"be one of trains: {', '.join(self.trains)}")

    def shows_pictures(self, step: int) -> bool | None:
        """Whether this step's global batch is of sequences with pictures (True) or of texts (False); None: of both."""
        if not (self.text_steps or self.picture_steps):
            return None
        return step % (self.text_steps + self.picture_steps) >= self.text_steps


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretraining: phases one after the other, each with what it trains.

    mtp_layers      multi-token-prediction modules of a new model. mtp_weight: of their mean loss, gradient only.
    data            how files are read; data.weighting counts for the built-in data, too. digits:
                    "fit" keeps a part of the built-in training digits back for choosing between recipes.
    pools           "one": text and vision tokens share one pool of equal active width (for comparisons).
    thinking        share of the built-in samples that spell out how an answer is found.
    """

    seed: int = 0
    phases: tuple[PhaseConfig, ...] = ()
    mtp_layers: int = 0
    mtp_weight: float = 0.1
    pools: Literal["two", "one"] = "two"
    digits: Literal["all", "fit"] = "all"
    thinking: float = 0.6
    data: CorpusConfig = field(default_factory=CorpusConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(processes=1))

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        _check(len(set(names)) == len(names), "phases", names, "have names of their own")
        _check(not names or any(phase.enabled for phase in self.phases), "phases", names, "have one that is enabled")
        _check(self.mtp_layers >= 0, "mtp_layers", self.mtp_layers, "be at least 0")
        _check(self.mtp_weight >= 0, "mtp_weight", self.mtp_weight, "be at least 0")
        _check(0 <= self.thinking <= 1, "thinking", self.thinking, "be from 0 to 1")


def pairs(items: tuple[str, ...], key: str) -> dict[str, float]:
    """("a=1", "b=0.5") -> {"a": 1.0, "b": 0.5}. ConfigError for anything else, and for values that are not above 0."""
    found = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            found[name.strip()] = 0.0
        _check(found[name.strip()] > 0, key, item, "be NAME=NUMBER, the number above 0, with commas between several")
    return found


def _check(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} ({value!r}) must {rule}")
