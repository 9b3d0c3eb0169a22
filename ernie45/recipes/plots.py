"""Pictures of a run: learning curves from its log, and how often each expert is used, by layer and pool.

Knows nothing about training; needs matplotlib (extra `train`).
"""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from ernie45.checkpoint import load_model
from ernie45.config.errors import ConfigError
from ernie45.data.packing import Labelled, collate
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import SCORED_SKILLS, Mixture
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor import Processor
from ernie45.train.storage import read_metrics

CURVES, EXPERTS = "curves.png", "experts.png"
_COLOURS = {"vision": "#7a5195", "joint": "#2f7ed8", "supervised": "#e8743b"}
_SMOOTH = 5


def plot_run(folder: Path, run_folder: Path) -> None:
    """Write curves.png and experts.png into run_folder. ConfigError if matplotlib is missing."""
    plot_curves(read_metrics(run_folder), run_folder / CURVES)
    plot_experts(expert_usage(folder), run_folder / EXPERTS)


def plot_curves(entries: list[dict[str, Any]], path: Path) -> None:
    """Loss and token accuracy over the steps, a colour a stage."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, key, title in zip(axes, ("loss", "accuracy"), ("loss", "share of labels predicted right"), strict=True):
        for stage, colour in _COLOURS.items():
            points = [(entry["step"], entry[key]) for entry in entries if entry["stage"] == stage]
            if not points:
                continue
            steps, values = (np.array(column) for column in zip(*points, strict=True))
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axis.plot(steps, _smooth(values), color=colour, linewidth=2, label=stage)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def expert_usage(folder: Path, num_samples: int = 400) -> dict[str, np.ndarray]:
    """Share of its pool's tokens that each expert gets, by pool: [MoE layers, E], rows sum to 1. On training pictures."""
    model, processor = load_model(folder, dtype=torch.float32), Processor.from_dir(folder)
    mixture = Mixture(StripWriter(training_digits(), distort=False), dict.fromkeys(SCORED_SKILLS, 1.0))
    encoder, rng = SampleEncoder(processor), Random("expert usage")
    items: list[Labelled] = [encoder.encode(mixture.draw(rng), rng.random() < 0.5) for _ in range(num_samples)]
    with torch.no_grad():
        routers = model(collate(items, [1.0] * len(items), 1.0).packed).routers
    pools = [router.pool for router in routers[0]]
    counts = {
        pool: np.array([layer[place].tokens_per_expert_E.numpy() for layer in routers]) for place, pool in enumerate(pools)
    }
    return {pool: count / np.maximum(count.sum(1, keepdims=True), 1) for pool, count in counts.items()}


def plot_experts(usage: dict[str, np.ndarray], path: Path) -> None:
    """A heat map a pool: layers down, experts across. 1/E everywhere is perfect balance."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(usage), figsize=(5 * len(usage), 2.6), layout="constrained", squeeze=False)
    top = max(float(share.max()) for share in usage.values())
    image = None
    for axis, (pool, share_LE) in zip(axes[0], usage.items(), strict=True):
        image = axis.imshow(share_LE, vmin=0, vmax=top, cmap="viridis", aspect="auto")
        for (layer, expert), share in np.ndenumerate(share_LE):
            colour = "white" if share < 0.6 * top else "black"
            axis.text(expert, layer, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(f"{pool} experts: percent of the pool's tokens")
        axis.set_xlabel("expert")
        axis.set_ylabel("layer")
        axis.set_yticks(range(len(share_LE)), [str(layer + 1) for layer in range(len(share_LE))])
        axis.set_xticks(range(share_LE.shape[1]))
    figure.colorbar(image, ax=axes[0].tolist(), format=lambda share, _: f"{100 * share:.0f}%")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    window = min(_SMOOTH, len(values))
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed; run: pip install 'ernie45[train]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
