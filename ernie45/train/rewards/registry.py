"""Rewards by name, and how a spec becomes judges.

Knows nothing about what they do. A judge of one's own needs no entry here: `function(at=file.py:name)`.
"""

import importlib
from collections import Counter
from dataclasses import fields
from difflib import get_close_matches

from ernie45.config.errors import ConfigError
from ernie45.config.rewards import COMPOSITIONS, RewardSpec, read_options
from ernie45.train.rewards.compose import First, Leaf, Product, Sum
from ernie45.train.rewards.reward import Reward

_HERE = "ernie45.train.rewards"
REWARDS = {
    "exact": f"{_HERE}.text:Exact",
    "choice": f"{_HERE}.text:Choice",
    "edit": f"{_HERE}.text:Edit",
    "anls": f"{_HERE}.text:Anls",
    "numeric": f"{_HERE}.quantities:Numeric",
    "relaxed": f"{_HERE}.quantities:Relaxed",
    "table": f"{_HERE}.quantities:Table",
    "math": f"{_HERE}.mathematics:Math",
    "boxes": f"{_HERE}.boxes:Boxes",
    "code": f"{_HERE}.code:Code",
    "judge": f"{_HERE}.judge:Judge",
    "checklist": f"{_HERE}.judge:Checklist",
    "model": f"{_HERE}.learned:Model",
    "format": f"{_HERE}.shape:Format",
    "length": f"{_HERE}.shape:Length",
    "regex": f"{_HERE}.workers:Regex",
    "function": f"{_HERE}.workers:Function",
}


def build(spec: RewardSpec, names: Counter[str] | None = None) -> Reward:
    """The judge of a spec. ConfigError for an unknown name or option, or a value that cannot be.

    names: how often each judge occurred so far: the second `exact` of a composition is called exact.2 in `Score.parts`.
    """
    names = Counter() if names is None else names
    if spec.name in COMPOSITIONS:
        parts = tuple(build(part, names) for part in spec.parts)
        if spec.name == "sum":
            return Sum(parts=parts, weights=spec.weights)
        return Product(parts=parts) if spec.name == "product" else First(parts=parts)
    kind = reward_class(spec.name)
    judge = kind(**read_options(spec.name, defaults(kind), spec.options))
    names[spec.name] += 1
    return Leaf(reward=judge, name=spec.name if names[spec.name] == 1 else f"{spec.name}.{names[spec.name]}")


def reward_class(name: str) -> type[Reward]:
    """The class behind a name."""
    if name not in REWARDS:
        near = get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "for one's own there is function(at=file.py:name)"
        raise ConfigError(f"reward ({name!r}) must be one of {', '.join(REWARDS)}; {hint}")
    module, _, attribute = REWARDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def defaults(kind: type[Reward]) -> dict[str, object]:
    """Options of a judge with their defaults."""
    return {item.name: item.default for item in fields(kind) if item.init}  # type: ignore[arg-type]
