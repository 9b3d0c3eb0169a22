"""One way to run any stage: settings, folder, processes, loop, and the model folder at the end.

Knows nothing about what a stage learns (`recipes.registry` names who does).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ernie45.checkpoint import load_model, resolve_model, save_model
from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.train import FREE_TO_CHANGE, to_dict, with_overrides
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.recipes.forecasting import forecast, is_preset, preset_forecast, tokens_of
from ernie45.recipes.registry import STAGES, Assembly, BuildContext, load, recipe_config, stage_kind
from ernie45.train.board import Board
from ernie45.train.groups import group_table
from ernie45.train.loop import Run, Trainer
from ernie45.train.plan import lr_ratio
from ernie45.train.progress import Progress
from ernie45.train.stop import stop_on_signal
from ernie45.train.storage import CHECKPOINT, write_atomically
from ernie45.train.workers import Workers, started, torchrun_rank, torchrun_ranks

RUN_FOLDER = "run"
"""Beside the model's files: checkpoint, metrics, settings."""
SETTINGS = "settings.json"
FREE_SETTINGS = (*(f"config.loop.{name}" for name in FREE_TO_CHANGE), "config.data.workers", "config.data.prefetch")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run as the user asked for it. overrides: `a.b` -> text. accept_changes: go on although the folder's settings differ."""

    stage: str
    recipe: str
    out: Path
    model: str | None = None
    data: tuple[Path, ...] = ()
    eval_data: tuple[Path, ...] = ()
    seed: int = 0
    processes: int = 1
    fresh: bool = False
    accept_changes: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)


def recipe_table() -> list[tuple[str, str, str, str]]:
    """(stage, recipe, what the recipe is, what `--data` takes) for every recipe."""
    rows = []
    for stage, kind in STAGES.items():
        for name, place in kind.recipes.items():
            doc = (load(place).__doc__ or "").strip().splitlines()
            rows.append((stage, name, doc[0] if doc else kind.summary, kind.data))
    return rows


def resolve(request: Request) -> Any:
    """The recipe's config with seed, processes and `--set` applied. ConfigError, before anything is written."""
    kind = stage_kind(request.stage)
    if request.model is None and kind.needs_model:
        raise ConfigError(f"--model must be given for {request.stage}; a model folder, or tiny")
    for option, paths in (("--data", request.data), ("--eval-data", request.eval_data)):
        for path in paths:
            if not path.exists():
                raise ConfigError(f"{option} ({path}) must be a file that exists; {request.stage} takes {kind.data}")
    config = recipe_config(request.stage, request.recipe)
    config = with_overrides(replace(config, seed=request.seed), dict(request.overrides))
    ranks = torchrun_ranks()
    if ranks and request.processes not in (1, ranks):
        raise ConfigError(f"--processes ({request.processes}) must be left out under torchrun, which has started {ranks}")
    return replace(config, loop=replace(config.loop, processes=ranks or request.processes))


def describe(request: Request) -> dict[str, Any]:
    """What a run would be, without starting it: settings, the facts of the stage, and what learns at which rate."""
    config = resolve(request)
    if is_preset(request.model):
        return {"stage": request.stage, "recipe": request.recipe, **preset_forecast(str(request.model), config)}
    with _built(request, config, Workers()) as assembly:
        parameters = dict(assembly.modules.named_parameters())
    groups = {
        stage.name: group_table(parameters, config.optim, lambda name, stage=stage: lr_ratio(stage, name))
        for stage in assembly.stages
    }
    facts = {"stage": request.stage, "recipe": request.recipe, **dict(assembly.describe)}
    phases = {name: phase["shard_tokens"] for name, phase in facts.get("phases", {}).items()}
    tokens = {"": tokens_of(config, from_files=bool(request.data)), **phases}
    needs = forecast(assembly.modules, assembly.stages, config, tokens)
    return {**facts, "forecast": needs, "parameter_groups": groups, "config": to_dict(config)}


def run(request: Request) -> bool:
    """Train into `out`, going on from its checkpoint. False if stopped before the end, after a checkpoint."""
    config = resolve(request)
    folder = request.out / RUN_FOLDER
    settings = settings_of(request, config)
    if torchrun_rank() == 0:  # before the processes meet, so that all find the folder as it shall be
        if request.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        _open_folder(folder, settings, request.accept_changes)
    torch.set_num_threads(1)
    fingerprint = None if request.accept_changes else _digest(settings)
    with started(config.loop.processes, _worker, request, config, fingerprint) as workers, stop_on_signal() as stop:
        if workers.rank:
            return _worker(workers, request, config, fingerprint, stop.is_set)
        with _built(request, config, workers) as assembly, Board(folder) as board:
            trainer = _trainer(assembly, config, workers)
            with Progress(trainer.num_steps) as progress:

                def on_step(entry: dict[str, Any]) -> None:
                    progress.show(entry)
                    board.write(entry)

                state = Run(folder=folder, fingerprint=fingerprint, stop_requested=stop.is_set, on_step=on_step)
                finished = trainer.run(state)
    if finished:
        if config.loop.export_average:
            trainer.use_average()
        (assembly.write or _write_model(request))(trainer, request.out)
    return finished


@contextmanager
def _built(request: Request, config: Any, workers: Workers) -> Iterator[Assembly]:
    """`build`, and what the stage holds beside its modules ended afterwards."""
    assembly = build(request, config, workers)
    try:
        yield assembly
    finally:
        if assembly.close is not None:
            assembly.close()


def build(request: Request, config: Any, workers: Workers) -> Assembly:
    """Model, data and stage; the same on every process."""
    kind = stage_kind(request.stage)
    if request.model is None:
        source = None
        model, processor = load(kind.new_model)(config)
    else:
        source = resolve_model(request.model)
        model, processor = load_model(source, dtype=torch.float32), Processor.from_dir(source)
    context = BuildContext(
        config=config,
        model=model,
        source=source,
        processor=processor,
        data=request.data,
        eval_data=request.eval_data,
        folder=request.out / RUN_FOLDER,
        workers=workers,
    )
    return load(kind.build)(context)


def settings_of(request: Request, config: Any) -> dict[str, Any]:
    """All that decides what is learnt, as plain JSON types: saved with the run, and compared when it goes on."""
    return {
        "stage": request.stage,
        "recipe": request.recipe,
        "model": None if request.model is None else str(request.model),
        "data": [f"{path} ({path.stat().st_size:,} bytes)" for path in request.data],
        "config": to_dict(config),
    }


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`a.b: old -> new` for every setting that differs, but for those that are free to change."""
    if name in FREE_SETTINGS:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
    return [] if old == new else [f"{name.removeprefix('config.')}: {old!r} -> {new!r}"]


def write_model(model: ErnieModel, source: Path | None, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A model folder in `out` beside the run, in the -PT layout; tokenizer and processor files from `source`."""
    rounded = ErnieModel(model.config, dtype=dtype, device="cpu")
    rounded.load_state_dict(model.state_dict())
    staging = out / RUN_FOLDER / "model"
    shutil.rmtree(staging, ignore_errors=True)
    save_model(rounded, staging, layout="pt", processor_files_from=source)
    # config.json comes last: a folder without it is not a model.
    for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(out / file.name)
    shutil.rmtree(staging)


def _write_model(request: Request) -> Any:
    source = None if request.model is None else resolve_model(request.model)
    return lambda trainer, out: write_model(trainer.model, source, out)


def _trainer(assembly: Assembly, config: Any, workers: Workers) -> Trainer:
    """The loop over an assembly that is prepared."""
    if assembly.prepare is not None:
        assembly.prepare()
    return Trainer(assembly.modules, assembly.stages, config.loop, config.optim, workers)


def _worker(
    workers: Workers, request: Request, config: Any, fingerprint: str | None, stop: Callable[[], bool] = lambda: False
) -> bool:
    """What every process but the first does."""
    with _built(request, config, workers) as assembly:
        trainer = _trainer(assembly, config, workers)
        return trainer.run(Run(folder=request.out / RUN_FOLDER, fingerprint=fingerprint, stop_requested=stop))


def _open_folder(folder: Path, settings: dict[str, Any], accept_changes: bool) -> None:
    """Save the settings; refuse a folder whose checkpoint was made with others."""
    path = folder / SETTINGS
    if (folder / CHECKPOINT).exists() and path.exists() and not accept_changes:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON ({error}); start anew with --fresh or another --out") from error
        changed = differences(old, json.loads(json.dumps(settings)))
        if changed:
            raise CheckpointError(
                f"--out ({folder.parent}) holds a run with other settings ({'; '.join(changed)}); use these settings again, "
                "another --out, --fresh to start anew, or --accept-changes to go on with the new ones"
            )
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


def _digest(settings: dict[str, Any]) -> str:
    settings = json.loads(json.dumps(settings))
    for name in FREE_SETTINGS:
        *groups, key = name.split(".")
        place = settings
        for group in groups:
            place = place.get(group, {})
        place.pop(key, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
