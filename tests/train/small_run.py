"""A run of a few seconds for the tests of the loop; also a program, so that tests can kill it.

Usage: python small_run.py FOLDER PROCESSES [STEPS_BEFORE_SLOW]. Knows nothing about pytest.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig
from ernie45.data.tiny.batches import SightBatches
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_processor
from ernie45.model.multimodal import ErnieModel
from ernie45.train.loop import Run, Trainer
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.objectives.sight import sight_forward, sight_loss, word_counts
from ernie45.train.stage import Stage
from ernie45.train.workers import Workers, started

sys.path.insert(0, str(Path(__file__).parent))
from conftest import batches_of, small_config

FINAL = "final.pt"


def trainer(workers: Workers, processes: int = 1, checkpoint_seconds: float = 1e9, **settings: Any) -> Trainer:
    """Three steps of digits, then nine of language; two shards a step. settings: of the loop."""
    torch.set_num_threads(1)
    model = ErnieModel(small_config())
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    counts_CV = word_counts(tiny_processor().tokenizer, model.config.vocab_size)
    vision = Stage(
        name="vision",
        schedule=ScheduleConfig(num_steps=3, warmup_steps=1),
        batch=SightBatches(0, 4, training_digits("fit"), num_shards=2),
        forward=lambda modules, batch: sight_forward(modules["model"], counts_CV, batch),
        objective=sight_loss,
        trains=lambda name: "vision_model" in name or "resampler" in name,
    )
    language = Stage(
        name="language",
        schedule=ScheduleConfig(num_steps=9, warmup_steps=0, decay_steps=5),
        batch=batches_of(tiny_processor(), {"read": 1.0, "arithmetic": 1.0}, num_shards=2),
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=RouterConfig(),
        trains=lambda name: name.startswith("model."),
        routers=RouterConfig(bias_rate=0.01),
        keeps_average=True,
    )
    common = {"num_shards": 2, "processes": processes, "ema_decay": 0.8, "checkpoint_seconds": checkpoint_seconds}
    config = LoopConfig(**{**common, **settings})
    modules = nn.ModuleDict({"model": model})
    return Trainer(modules, [vision, language], config, OptimConfig(lr=0.02), workers)


def child(workers: Workers, folder: Path, processes: int) -> None:
    trainer(workers, processes).run(Run(folder=folder, fingerprint="small"))


def main(folder: Path, processes: int, slow_from: int = 10**9) -> None:
    """Train to the end and write the final state. From step `slow_from` on, steps take a while: time to be killed."""

    def on_step(entry: dict) -> None:
        sys.stdout.write(f"{entry['step']}\n")
        sys.stdout.flush()
        if entry["step"] >= slow_from:
            time.sleep(5)

    with started(processes, child, folder, processes) as workers:
        made = trainer(workers, processes, checkpoint_seconds=0)
        made.run(Run(folder=folder, fingerprint="small", on_step=on_step))
        torch.save(made.state_dict(), folder / FINAL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))
