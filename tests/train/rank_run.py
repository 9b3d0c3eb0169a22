"""Runs of several ranks for the tests, under torchrun. Usage: rank_run.py FOLDER. Knows nothing about pytest.

1 sharded, stopped on the way, gone on: the same 12 steps as one process. 2 bf16, sharded, recomputed.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from ernie45.train.loop import Run
from ernie45.train.workers import started

STOPPED_AFTER = 5


def main(folder: Path) -> None:
    losses: dict[str, list[float]] = {"sharded": [], "bf16": []}

    def run(name: str, stop_after: int, **settings: Any) -> Any:
        trainer = small_run.trainer(workers, workers.num_processes, shard="full", **settings)
        trainer.run(
            Run(
                folder=folder / name,
                fingerprint=None,
                # One rank alone asks: all stop.
                stop_requested=lambda: workers.rank == 1 and trainer.step == stop_after,
                on_step=lambda entry: losses[name].append(entry["loss"]),
            )
        )
        return trainer

    with started(2, run) as workers:
        run("sharded", STOPPED_AFTER)
        trainer = run("sharded", -1)
        run("bf16", STOPPED_AFTER, precision="bf16", recompute="routing")
        if workers.rank == 0:
            average = trainer.averaged_state()
            torch.save(
                {"losses": losses, "parameters": dict(trainer.modules.named_parameters()), "average": average},
                folder / "ranks.pt",
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
