"""Which parameters learn in a phase of pretraining, in which kind of batch: groups, alternation, modality detach.

Knows nothing about data, losses or the loop.
"""

import re
from collections.abc import Callable, Iterable

from torch import nn

from ernie45.config.errors import ConfigError
from ernie45.config.pretrain import GROUPS, PhaseConfig, pairs
from ernie45.train.stage import Group

_TOWER = re.compile(r"(^|\.)vision_model\.")
_VISION_MIXED = re.compile(r"(^|\.)(resampler_model|pools\.vision)\.")
_PICTURES_ONLY = re.compile(r"(^|\.)(vision_model|resampler_model)\.")
SMALL = "small"
"""Name of the small decoder among the modules."""


def group_of(name: str) -> str:
    """The one of `GROUPS` that a parameter of the model belongs to; "small" for the small decoder's own."""
    if name.startswith(f"{SMALL}."):
        return SMALL
    if _TOWER.search(name):
        return "tower"
    return "vision_mixed" if _VISION_MIXED.search(name) else "text"


def trained_by(entry: str, names: Iterable[str]) -> frozenset[str]:
    """Names that an entry of `PhaseConfig.trains` stands for. ConfigError if there are none, or for a broken pattern."""
    try:
        found = frozenset(name for name in names if (group_of(name) == entry if entry in GROUPS else re.search(entry, name)))
    except re.error as error:
        raise ConfigError(f"trains ({entry!r}) is neither a group ({', '.join(GROUPS)}) nor a pattern: {error}") from error
    if not found:
        raise ConfigError(f"trains ({entry!r}) fits no parameter; name a group ({', '.join(GROUPS)}) or a pattern that does")
    return found


class PhaseGroups:
    """The groups of one phase over given parameters."""

    def __init__(self, phase: PhaseConfig, names: Iterable[str]) -> None:
        """names: of all parameters, the small decoder's too. ConfigError for a phase with batches in which nothing learns."""
        names = list(names)
        self._phase = phase
        self._names = {entry: trained_by(entry, names) for entry in phase.trains}
        if phase.decoder == SMALL:
            self._names[SMALL] = trained_by(f"^{SMALL}\\.", names)
        for shows in self._kinds():
            learning = self.learning(shows)
            if not (learning if shows else [name for name in learning if not _PICTURES_ONLY.search(name)]):
                kind = "with pictures" if shows else "of texts"
                raise ConfigError(
                    f"phase {phase.name}: in batches {kind} nothing learns (trains: {', '.join(phase.trains)}); "
                    "add a group, or leave these batches out with text_steps and picture_steps"
                )

    def groups(self) -> tuple[Group, ...]:
        """For the stage. A group's schedule counts the steps in which it is active."""
        ratios = pairs(self._phase.lr_ratios, f"phases.{self._phase.name}.lr_ratios")
        return tuple(
            Group(name=entry, trains=names.__contains__, lr_ratio=ratios.get(entry, 1.0), active=self._activity(names))
            for entry, names in self._names.items()
        )

    def learning(self, shows: bool) -> frozenset[str]:
        """Parameters that take gradients from a shard with pictures (True) or without."""
        rests = self._rests_with(shows)
        return frozenset(name for names in self._names.values() for name in names if group_of(name) not in rests)

    def _rests_with(self, shows: bool) -> tuple[str, ...]:
        """Groups without gradients. A mixed batch may have a shard without pictures: nothing rests for that."""
        phase = self._phase
        if shows:
            return ("text",) if phase.text_rests or phase.detach_text else ()
        return ("vision_mixed", "tower") if phase.text_steps else ()

    def _kinds(self) -> tuple[bool, ...]:
        phase = self._phase
        if not (phase.text_steps or phase.picture_steps):
            return (True, False)
        return (*((False,) if phase.text_steps else ()), *((True,) if phase.picture_steps else ()))

    def _activity(self, names: frozenset[str]) -> Callable[[int], bool]:
        """Step -> whether the group moves."""
        phase, kinds = self._phase, {group_of(name) for name in names}

        def active(step: int) -> bool:
            shows = phase.shows_pictures(step)
            if shows is None:
                return True
            return not (kinds <= {"text"} and phase.text_rests) if shows else not kinds <= {"vision_mixed", "tower"}

        return active


class GradientGate:
    """Takes gradients only for what learns from a shard, which also saves the work for the rest.

    Sets `requires_grad` before a forward; the optimiser's gradients of the others stay as they are. Names are looked up each
    time, as the loop may have put other tensors in the parameters' places.
    """

    def __init__(self, groups: PhaseGroups) -> None:
        self._learning = {shows: groups.learning(shows) for shows in (False, True)}

    def set(self, modules: nn.Module, shows: bool) -> None:
        """Before the forward of a shard with pictures (True) or without."""
        learning = self._learning[shows]
        for name, parameter in modules.named_parameters():
            parameter.requires_grad_(name in learning)
