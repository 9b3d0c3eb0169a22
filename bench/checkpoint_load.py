"""Loading a checkpoint: `load_model` against transformers' `from_pretrained` on the same files, alternating.

    python -m bench.checkpoint_load [--families vl moe dense] [--dtype bf16|fp32] [--runs 7] [--scale 1.0] [--folder DIR]

Writes a random model in the layout that both read (native), then loads it in turn; the order is swapped every round, and the
first round is not counted. Two times are given for each: until the call returns, and until every page of every weight has been
read once (a reader that maps files returns before it has read them). The files are in the page cache: what is measured is the
program, not the disk. Knows nothing about other benchmarks.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import torch

from bench.report import write_result
from ernie45.checkpoint import load_model, save_model
from ernie45.config.model import ExpertPoolConfig, ModelConfig, VisionConfig
from ernie45.model.multimodal import ErnieModel

PAGE_BYTES = 4096
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Timing(NamedTuple):
    """Seconds: until the call returned, until all weights were read, and of CPU for the latter."""

    call: float
    read: float
    cpu: float


def config_of(family: str, scale: float) -> ModelConfig:
    """About half a gigabyte in bf16 at scale 1; the width ratios of the 28B model."""
    hidden, ffn = 64 * round(8 * scale), 32 * round(8 * scale)
    text = ExpertPoolConfig(modality="text", num_experts=32, ffn_size=ffn, num_active=6)
    vision = ExpertPoolConfig(modality="vision", num_experts=32, ffn_size=ffn // 2, num_active=6)
    tower = VisionConfig(depth=8, hidden_size=320, num_heads=4, intermediate_size=1280)
    return ModelConfig(
        hidden_size=hidden,
        num_layers=12,
        num_heads=hidden // 64,
        num_kv_heads=max(1, hidden // 256),
        head_dim=64,
        mrope_section=(11, 11, 10),
        intermediate_size=4 * hidden,
        vocab_size=103424,
        expert_pools={"vl": (text, vision), "moe": (text,), "dense": ()}[family],
        shared_ffn_size=0 if family == "dense" else 2 * ffn,
        vision=tower if family == "vl" else None,
    )


def loaders(folder: Path, family: str, dtype: torch.dtype) -> dict[str, Callable[[], torch.nn.Module]]:
    """Both ways of loading, by name."""
    import transformers

    name = {"vl": "Ernie4_5_VLMoeForConditionalGeneration", "moe": "Ernie4_5_MoeForCausalLM", "dense": "Ernie4_5ForCausalLM"}
    their_class = getattr(transformers, name[family])
    return {
        "ernie45": lambda: load_model(folder, dtype=dtype),
        "transformers": lambda: their_class.from_pretrained(folder, dtype=dtype),
    }


def measure(load: Callable[[], torch.nn.Module]) -> Timing:
    """One load, and a read of one byte of every page of every weight."""
    begin, cpu = perf_counter(), process_time()
    model = load()
    called = perf_counter() - begin
    for tensor in model.state_dict().values():
        tensor.reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum()
    return Timing(called, perf_counter() - begin, process_time() - cpu)


def run(family: str, arguments: argparse.Namespace) -> dict[str, object]:
    """One row of the result: medians of alternating loads; a ratio above 1 says that we are faster."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary) / "model"
        save_model(ErnieModel(config_of(family, arguments.scale), dtype=torch.bfloat16), folder, "native")
        ways = loaders(folder, family, DTYPES[arguments.dtype])
        timings: dict[str, list[Timing]] = {name: [] for name in ways}
        for number in range(arguments.runs + 1):
            for name in ways if number % 2 else reversed(ways):
                timing = measure(ways[name])
                if number:
                    timings[name].append(timing)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    ours, theirs = (Timing(*map(median, zip(*timings[name], strict=True))) for name in ("ernie45", "transformers"))
    return {
        "family": family,
        "MB": round(size / 1e6),
        "transformers s": theirs.read,
        "ernie45 s": ours.read,
        "ratio": theirs.read / ours.read,
        "ratio, CPU time": theirs.cpu / ours.cpu,
        "ratio, until the call returns": theirs.call / ours.call,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load the same checkpoint with ernie45 and with transformers, alternating.")
    parser.add_argument("--families", nargs="+", choices=["vl", "moe", "dense"], default=["vl", "moe", "dense"])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="width of the model")
    parser.add_argument("--folder", type=Path, default=None, help="where to write the checkpoint; default: a temporary folder")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    arguments = parser.parse_args()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = [run(family, arguments) for family in arguments.families]
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if arguments.dry_run:
        return
    notes = [
        f"random bf16 weights, loaded as {arguments.dtype}, files in the page cache; {torch.get_num_threads()} thread(s)",
        f"seconds until one byte of every page of every weight has been read; medians of {arguments.runs} alternating runs",
    ]
    print(write_result("checkpoint_load", "Loading a checkpoint", rows, notes=notes, packages=("torch", "transformers")))


if __name__ == "__main__":
    main()
