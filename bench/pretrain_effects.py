"""What each part of pretraining changes on the tiny model: `python -m bench.pretrain_effects --out runs/effects --seeds 3`.

Knows nothing about how anything is done. Every run has a folder of its own, DIR/VARIANT/seed-N; the same command goes on where
it was and repeats nothing that is finished. At the end: a table of means over seeds with their standard deviations, and beside
each variant the mean difference from the whole recipe of the same seeds. Held out: documents with digits of other writers.

--share 0.1 makes every phase a tenth as long: to try the command out. --only NAME ... runs some variants.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ernie45.checkpoint import load_model
from ernie45.config.errors import ConfigError
from ernie45.config.train import RouterConfig
from ernie45.data.tiny.documents import DocumentBatches, DocumentData
from ernie45.evals.heldout import heldout_digits
from ernie45.processor import Processor
from ernie45.recipes.registry import recipe_config
from ernie45.recipes.report import read_run
from ernie45.recipes.runner import RUN_FOLDER, Request, run
from ernie45.recipes.tiny import WEIGHTS
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.storage import read_metrics, write_atomically

WHOLE = "whole"
_BATCHES, _TOKENS = 12, 1600
_RESULT = "effect.json"


class Variant(NamedTuple):
    """A recipe with settings, and what they are meant to change."""

    about: str
    overrides: dict[str, str]
    recipe: str = "tiny"


VARIANTS = {
    WHOLE: Variant("the staged recipe", {}),
    "at-once": Variant("everything learns from the first step, as many steps", {}, "tiny-at-once"),
    "one-pool": Variant(
        "text and vision share a pool, equal in weights and mean width", {"pools": "one", "phases.align.births": "false"}
    ),
    "no-birth": Variant("vision experts begin fresh", {"phases.align.births": "false"}),
    "no-orthogonal": Variant("no orthogonal step: overlap of gates", {"router.orthogonal_weight": "0"}),
    "no-bias": Variant("no correction bias: load", {"router.bias_rate": "0"}),
    "no-losses": Variant("no balance and z-loss: load", {"router.aux_weight": "0", "router.z_weight": "0"}),
    "mean-loss": Variant("every label of a step counts alike: text against pictures", {"data.weighting": "mean"}),
    "no-average": Variant("the last weights, not their average", {"loop.export_average": "false"}),
    "mtp": Variant("a module predicts one token further", {"mtp_layers": "1"}),
    "detach": Variant("pictures teach text nothing: interference", {"phases.joint.detach_text": "true"}),
    "apart": Variant("text rests in steps with pictures: interference", {"phases.joint.text_rests": "true"}),
}
COLUMNS = {
    "loss_text": "held-out loss, texts",
    "loss_pictures": "held-out loss, pictures",
    "accuracy_pictures": "labels right, pictures",
    "text_violation": "text load violation",
    "vision_violation": "vision load violation",
    "text_orthogonality": "text gate overlap",
    "vision_orthogonality": "vision gate overlap",
    "cpu_seconds": "CPU-s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys([WHOLE, *args.only]))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(args.seeds):
        for name in names:
            out = args.out / name / f"seed-{seed}"
            if (found := effect(name, out, seed, args.share)) is None:
                print(f"stopped in {out}; the same command goes on there")
                return
            results[name].append(found)
    text = "\n".join(table(results))
    write_atomically(args.out / "effects.md", (text + "\n").encode())
    print(text)


def effect(name: str, out: Path, seed: int, share: float) -> dict[str, float] | None:
    """The measures of one run, trained now unless it is finished; None if it was interrupted."""
    if (out / _RESULT).is_file():
        return json.loads((out / _RESULT).read_text(encoding="utf-8"))
    variant = VARIANTS[name]
    overrides = shortened(variant.recipe, share) | {
        key: value for key, value in variant.overrides.items() if not key.startswith("phases.align") or variant.recipe == "tiny"
    }
    print(f"{name}, seed {seed}: {variant.about}")
    if not run(Request(stage="pretrain", recipe=variant.recipe, out=out, seed=seed, overrides=overrides | {"digits": "fit"})):
        return None
    found = held_out(out) | health(out)
    write_atomically(out / _RESULT, json.dumps(found, indent=2).encode())
    return found


def shortened(recipe: str, share: float) -> dict[str, str]:
    """Settings that make every phase as long as its share. ConfigError for a share that is not above 0."""
    if not share > 0:
        raise ConfigError(f"--share ({share}) must be above 0")
    phases = recipe_config("pretrain", recipe).phases
    return {f"phases.{phase.name}.schedule.num_steps": str(max(2, round(share * phase.schedule.num_steps))) for phase in phases}


@torch.no_grad()
def held_out(out: Path) -> dict[str, float]:
    """Loss and accuracy of the written model by modality and source, on documents with held-out digits."""
    model, processor = load_model(out, dtype=torch.float32), Processor.from_dir(out)
    sums: dict[str, list[float]] = {}
    for kind, shows in (("text", False), ("pictures", True)):
        data = DocumentData(
            name="held out",
            seed=1,
            weights=WEIGHTS,
            thinking=0.6,
            shows=lambda step, shows=shows: shows,
            blind=False,
            token_budget=_TOKENS,
            context=0,
            token_balanced=True,
            num_shards=1,
        )
        batches = DocumentBatches(data, heldout_digits(), processor)
        for step in range(_BATCHES):
            batch = batches(step, 0)
            metrics = language_loss(language_forward(model, batch), batch, RouterConfig(aux_weight=0, z_weight=0)).metrics
            named = {f"{name}_{kind}": metrics[name] for name in ("loss", "accuracy")}
            named |= {name: both for name, both in metrics.items() if name.startswith("loss.source.")}
            for name, (value, count) in named.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0], pair[1] = pair[0] + float(value), pair[1] + float(count)
    return {name: value / count for name, (value, count) in sums.items() if count}


def health(out: Path) -> dict[str, float]:
    """Router health at the end of the last phase, and CPU-seconds of all steps."""
    log = read_run(out)
    found = {name: log.final(name) for name in COLUMNS if log.final(name) is not None}
    spent = sum(entry.get("cpu_seconds", 0.0) for entry in read_metrics(out / RUN_FOLDER))
    return {name: value for name, value in found.items() if value is not None} | {"cpu_seconds": spent}


def table(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Markdown: mean ± standard deviation over seeds, then the mean difference from the whole recipe with its own."""
    yield "| variant | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for name, runs in results.items():
        cells = [_cell([one[column] for one in runs if column in one]) for column in COLUMNS]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| minus the whole recipe, same seeds | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for name, runs in results.items():
        if name == WHOLE:
            continue
        pairs = list(zip(runs, results[WHOLE], strict=True))
        cells = [_cell([one[c] - whole[c] for one, whole in pairs if c in one and c in whole], signed=True) for c in COLUMNS]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield from (f"- {name}: {VARIANTS[name].about}" for name in results)


def _cell(values: list[float], signed: bool = False) -> str:
    if not values:
        return "–"
    digits = 0 if max(map(abs, values)) >= 100 else 3
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
