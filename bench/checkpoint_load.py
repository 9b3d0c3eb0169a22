"""Loading a checkpoint: `load_model` against transformers' `from_pretrained` on the same files, alternating.

    python -m bench.checkpoint_load [--family vl|moe|dense] [--dtype bf16|fp32] [--runs 7] [--scale 1.0] [--folder DIR]

Writes a random model in the layout that both read (native), then loads it in turn; the order is swapped every round, and the
first round is not counted. Two times are given for each: until the call returns, and until every page of every weight has been
read once (a reader that maps files returns before it has read them). The files are in the page cache: what is measured is the
program, not the disk. Knows nothing about other benchmarks.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch

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


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate the two and give medians, and transformers' median over ours: above 1 we are faster."""
    ways = loaders(folder, arguments.family, DTYPES[arguments.dtype])
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for number in range(arguments.runs + 1):
        for name in ways if number % 2 else reversed(ways):
            timing = measure(ways[name])
            if number:
                timings[name].append(timing)
    medians = {name: Timing(*map(median, zip(*own, strict=True))) for name, own in timings.items()}
    return {
        "checkpoint_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "seconds": {name: own._asdict() for name, own in medians.items()},
        "speedup": {
            field: round(getattr(medians["transformers"], field) / getattr(medians["ernie45"], field), 2)
            for field in Timing._fields
        },
    }


def main() -> None:
    """Print one JSON object with settings and results."""
    parser = argparse.ArgumentParser(description="Load the same checkpoint with ernie45 and with transformers, alternating.")
    parser.add_argument("--family", choices=["vl", "moe", "dense"], default="vl")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="width of the model")
    parser.add_argument("--folder", type=Path, default=None, help="where to write the checkpoint; default: a temporary folder")
    arguments = parser.parse_args()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary) / "model"
        save_model(ErnieModel(config_of(arguments.family, arguments.scale), dtype=torch.bfloat16), folder, "native")
        result = run(folder, arguments)
    settings = {key: str(value) for key, value in vars(arguments).items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.platform()}
    print(json.dumps({"settings": settings, "threads": torch.get_num_threads(), **versions, **result}, indent=2))


if __name__ == "__main__":
    main()
