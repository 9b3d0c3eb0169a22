"""The stages of training and their recipes, by name; a module is imported when it is asked for.

Knows nothing about what a stage does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ernie45.config.errors import ConfigError
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train.loop import Trainer
from ernie45.train.stage import Stage
from ernie45.train.workers import Workers


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a stage is built from, the same on every process.

    config: the stage's dataclass, resolved. model: fp32, with its weights; source: the folder it came from (None: new weights).
    data, eval_data: files the user gave; empty: the recipe's own data, if it has any. folder: of the run, for checkpoints,
    metrics and caches.
    """

    config: Any
    model: ErnieModel
    source: Path | None
    processor: Processor
    data: tuple[Path, ...]
    eval_data: tuple[Path, ...]
    folder: Path
    workers: Workers


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A stage ready to run.

    modules: "model" and whatever else trains. stages: for the loop. write: (trainer, out) -> None puts the result into a
    folder; None: the model with the source's processor files. describe: facts for `--dry-run` and the report, plain JSON types.
    prepare: called on every process of a run, not for a dry one, while the model still has its first weights.
    close: ends what the stage holds beside its modules (processes, connections), after the run or its failure.
    """

    modules: nn.ModuleDict
    stages: list[Stage]
    write: Callable[[Trainer, Path], None] | None = None
    describe: Mapping[str, Any]
    prepare: Callable[[], None] | None = None
    close: Callable[[], None] | None = None


class StageKind(NamedTuple):
    """build: "module:function" of (BuildContext) -> Assembly. recipes: name -> "module:function" of () -> config dataclass.

    data: what `--data` takes, for people. needs_model: whether `--model` must be given (else the recipe makes a new one, with
    "module:function" `new_model` of (config) -> (ErnieModel, Processor)).
    """

    summary: str
    data: str
    build: str
    recipes: Mapping[str, str]
    needs_model: bool = True
    new_model: str = ""


STAGES: dict[str, StageKind] = {
    "pretrain": StageKind(
        summary="from nothing or on: towers, experts and decoder in phases",
        data="documents and conversations (default: generated ones, for the tiny model)",
        build="ernie45.recipes.pretrain:build",
        recipes={"tiny": "ernie45.recipes.pretrain:tiny", "tiny-at-once": "ernie45.recipes.pretrain:tiny_at_once"},
        needs_model=False,
        new_model="ernie45.recipes.pretrain:new_model",
    ),
    "rlvr": StageKind(
        summary="reinforcement learning from answers that can be checked",
        data="prompts with answers (default: generated sums of written digits, for the tiny model)",
        build="ernie45.recipes.policy:build",
        recipes={"tiny": "ernie45.recipes.policy:tiny"},
    ),
    "upo": StageKind(
        summary="the same with a preference term over pairs, online or given",
        data="prompts with answers, and pairs for pairs.source=offline or both (default: generated ones, for the tiny model)",
        build="ernie45.recipes.policy:build",
        recipes={"tiny": "ernie45.recipes.policy:tiny_upo"},
    ),
    "sft": StageKind(
        summary="supervised answers, with and without thoughts; whole model or LoRA",
        data="conversations (default: generated ones, for the tiny model)",
        build="ernie45.recipes.sft:build",
        recipes={name: f"ernie45.recipes.sft:{name.replace('-', '_')}" for name in ("tiny", "cold-start", "vision", "fusion")},
    ),
    "dpo": StageKind(
        summary="preference pairs: DPO and its family",
        data="pairs of a chosen and a rejected answer (default: generated ones, for the tiny model)",
        build="ernie45.recipes.preference:build",
        recipes={"tiny": "ernie45.recipes.preference:tiny"},
    ),
    "reward": StageKind(
        summary="a reward model from preference pairs: a scalar head, pairwise",
        data="pairs of a chosen and a rejected answer (default: generated ones, for the tiny model)",
        build="ernie45.recipes.reward:build",
        recipes={"tiny": "ernie45.recipes.reward:tiny"},
    ),
}


def stage_kind(stage: str) -> StageKind:
    """ConfigError lists the known ones."""
    return STAGES[_known("STAGE", stage, STAGES)]


def recipe_config(stage: str, recipe: str) -> Any:
    """The recipe's config with its own values. ConfigError for a name that the stage does not have."""
    kind = stage_kind(stage)
    return load(kind.recipes[_known(f"--recipe of {stage}", recipe, kind.recipes)])()


def load(place: str) -> Any:
    """The attribute that "module:attr" names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _known(field: str, name: str, names: Mapping[str, Any]) -> str:
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; see ernie45 train --list"
    raise ConfigError(f"{field} ({name!r}) must be one of {', '.join(names)}{hint}")
