"""`ernie45 train tiny`: the tiny model from nothing to a scored model folder, in ten minutes on two CPU cores.

Three stages, as in the real training: the vision tower first (each visual token names what it shows), then all parts
jointly on whole texts, then supervised answers, with and without thoughts, while the learning rate decays.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ernie45.checkpoint import save_model
from ernie45.config.errors import Ernie45Error
from ernie45.config.train import FREE_TO_CHANGE, LoopConfig, ScheduleConfig, TinyTrainConfig, to_dict, with_overrides
from ernie45.data.tiny.batches import LanguageBatches, LanguageData, SightBatches
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_config, tiny_processor, write_processor_files
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train.board import Board
from ernie45.train.loop import Run, Trainer
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.objectives.sight import sight_forward, sight_loss, word_counts
from ernie45.train.progress import Progress
from ernie45.train.stage import Stage
from ernie45.train.stop import stop_on_signal
from ernie45.train.storage import write_atomically
from ernie45.train.workers import Workers, started, torchrun_rank, torchrun_ranks

RUN_FOLDER = "run"
"""Beside the model's files: checkpoint, metrics, plots."""

WEIGHTS: dict[str, float] = {
    "read": 14,
    "read1": 3,
    "sum2": 10,
    "sum3": 13,
    "sum4": 10,
    "compare": 7,
    "talk": 5,
    "colour": 5,
    "count": 5,
    "place": 7,
    "chart_value": 5,
    "chart_highest": 4,
    "chart_total": 6,
    "caption": 7,
    "arithmetic": 10,
    "sentence": 6,
}


def run(
    out: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    fresh: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> bool:
    """Train into `out`, going on from its checkpoint if there is one; then write the model folder, plots and scores there.

    processes: data-parallel processes of one thread each. fresh: throw an earlier run in `out` away. overrides: `a.b` -> text.
    Returns False if interrupted (Ctrl-C), after a checkpoint.
    """
    config = TinyTrainConfig(seed=seed, loop=LoopConfig(processes=1))
    config = with_overrides(config, dict(overrides or {}))
    return train_tiny(replace(config, loop=replace(config.loop, processes=torchrun_ranks() or processes)), out, fresh=fresh)


def train_tiny(config: TinyTrainConfig, out: Path, fresh: bool = False) -> bool:
    """The recipe with a config of your own; see `run`."""
    folder = out / RUN_FOLDER
    if torchrun_rank() == 0:  # before the processes meet, so that all find the folder as it shall be
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        write_atomically(folder / "config.json", (json.dumps(to_dict(config), indent=2) + "\n").encode())
    torch.set_num_threads(1)
    with started(config.loop.processes, train_worker, config, folder) as workers, stop_on_signal() as stop:
        if workers.rank:
            return train_worker(workers, config, folder, stop.is_set)
        trainer = build_trainer(config, workers)
        with Progress(trainer.num_steps) as progress, Board(folder) as board:

            def on_step(entry: dict[str, Any]) -> None:
                progress.show(entry)
                board.write(entry)

            run_state = Run(folder=folder, fingerprint=fingerprint(config), stop_requested=stop.is_set, on_step=on_step)
            finished = trainer.run(run_state)
    if finished:
        write_model(trainer, config, out)
        finish(out, config)
    return finished


def train_worker(workers: Workers, config: TinyTrainConfig, folder: Path, stop: Callable[[], bool] = lambda: False) -> bool:
    """What every process but the first does."""
    run = Run(folder=folder, fingerprint=fingerprint(config), stop_requested=stop)
    return build_trainer(config, workers).run(run)


def build_trainer(config: TinyTrainConfig, workers: Workers) -> Trainer:
    """Model, head and stages; the same on every process."""
    model = ErnieModel(tiny_config(), device="cpu")
    generator = torch.Generator().manual_seed(config.seed)
    model.init_weights(generator)
    modules = nn.ModuleDict({"model": model})
    return Trainer(modules, stages_of(config, tiny_processor()), config.loop, config.optim, workers)


def stages_of(config: TinyTrainConfig, processor: Processor) -> list[Stage]:
    """The three stages in order."""
    digits = training_digits(config.digits)

    def language(name: str, thinking_share: float, whole_text: bool) -> LanguageBatches:
        data = LanguageData(
            name=name,
            seed=config.seed,
            weights=WEIGHTS,
            thinking_share=thinking_share,
            whole_text=whole_text,
            token_budget=config.token_budget,
            num_shards=config.loop.num_shards,
        )
        return LanguageBatches(data, digits, processor)

    counts_CV = word_counts(processor.tokenizer, tiny_config().vocab_size)
    vision = Stage(
        name="vision",
        schedule=replace(_schedule(config.vision_steps, decay=0.4, final_ratio=0.2), peak=3),
        batch=SightBatches(config.seed, config.pictures, digits, config.loop.num_shards),
        forward=lambda modules, batch: sight_forward(modules["model"], counts_CV, batch),
        objective=sight_loss,
        trains=lambda name: name.startswith(("model.vision_model.", "model.resampler_model.")),
    )
    joint = Stage(
        name="joint",
        schedule=_schedule(config.joint_steps),
        batch=language("joint", config.joint_thinking, whole_text=True),
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=config.router,
        trains=lambda name: name.startswith("model."),
        routers=config.router,
    )
    supervised = replace(
        joint,
        name="supervised",
        schedule=replace(_schedule(config.supervised_steps, decay=2 / 3, final_ratio=0.01), warmup_steps=0),
        batch=language("supervised", config.supervised_thinking, whole_text=False),
        keeps_average=config.average,
    )
    return [vision, joint, supervised]


def _schedule(num_steps: int, decay: float = 0, final_ratio: float = 0) -> ScheduleConfig:
    """decay: share of the steps that it takes. At most 20 steps of warm-up, fewer in short runs."""
    decay_steps = int(num_steps * decay)
    warmup_steps = min(20, num_steps // 10, num_steps - decay_steps)
    return ScheduleConfig(num_steps=num_steps, warmup_steps=warmup_steps, decay_steps=decay_steps, final_ratio=final_ratio)


def fingerprint(config: TinyTrainConfig) -> str:
    """Of all settings that change what is learnt; the number of processes and the time between checkpoints do not."""
    data = to_dict(config)
    for name in FREE_TO_CHANGE:
        del data["loop"][name]
    return hashlib.sha256(json.dumps([data, WEIGHTS], sort_keys=True).encode()).hexdigest()


def write_model(trainer: Trainer, config: TinyTrainConfig, out: Path) -> None:
    """The model folder: bf16 weights in the -PT layout, and the processor's files. config.json comes last."""
    state = dict(trainer.model.state_dict())
    average = trainer.averaged_state()
    if config.average and average is not None:
        state |= {name.removeprefix("model."): value for name, value in average.items() if name.startswith("model.")}
    model = ErnieModel(trainer.model.config, dtype=torch.bfloat16)
    model.load_state_dict(state)
    staging = out / RUN_FOLDER / "model"
    shutil.rmtree(staging, ignore_errors=True)
    save_model(model, staging, layout="pt")
    write_processor_files(tiny_processor(), staging)
    files = sorted(staging.iterdir(), key=lambda file: file.name == "config.json")
    for file in files:
        write_atomically(out / file.name, file.read_bytes())
    shutil.rmtree(staging)


def finish(out: Path, config: TinyTrainConfig) -> None:
    """Held-out scores, plots and sample pictures of a trained folder."""
    from ernie45.evals.samples import write_samples
    from ernie45.evals.tiny import evaluate
    from ernie45.recipes.plots import plot_run

    report = evaluate(out, num_prompts=config.held_out_prompts, seed=config.seed)
    write_atomically(out / RUN_FOLDER / "scores.json", (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    report.print()
    try:
        write_samples(out, out / RUN_FOLDER / "samples", seed=config.seed)
        plot_run(out, out / RUN_FOLDER)
    except Ernie45Error as error:  # a model trained too little, or no matplotlib: the run itself is whole
        print(f"note: {error}")
    print(f"model, scores and plots are in {out}; talk to it: ernie45 chat --model {out}")
