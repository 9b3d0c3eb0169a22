"""A program that trains two steps and prints its memory: what the forecast is held against. Knows nothing about pytest.

Usage: python measured_memory.py TOKENS. Prints the growth of the resident set at its highest, the bytes that autograd kept for
one shard, and the forecast, as JSON.
"""

import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import nn

from ernie45.config.model import ExpertPoolConfig, VisionConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_config, tiny_processor
from ernie45.model.multimodal import ErnieModel
from ernie45.train.forecast import Shard, memory_forecast
from ernie45.train.loop import Run, Trainer
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.stage import Stage
from ernie45.train.workers import Workers

SHAPE = replace(
    tiny_config(),
    hidden_size=192,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    mrope_section=(5, 5, 6),
    intermediate_size=768,
    shared_ffn_size=192,
    expert_pools=(
        ExpertPoolConfig(modality="text", num_experts=32, ffn_size=192, num_active=2),
        ExpertPoolConfig(modality="vision", num_experts=32, ffn_size=96, num_active=2),
    ),
    vision=VisionConfig(depth=3, hidden_size=128, num_heads=4, intermediate_size=384),
)


def highest() -> int:
    """The resident set at its highest, in bytes. Not getrusage's: a program inherits that from the one that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def kept_by_autograd(model: ErnieModel, batch) -> int:
    """Bytes of all storages that one forward saves for backward, the weights apart."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept_alive = language_loss(language_forward(model, batch), batch, RouterConfig())
    del kept_alive
    return sum(found.values())


def main(tokens: int) -> None:
    torch.set_num_threads(1)
    weights = {"read": 1.0, "sum3": 1.0, "caption": 1.0}
    data = LanguageData(name="m", seed=0, weights=weights, thinking_share=0.5, whole_text=True, token_budget=tokens)
    batches = LanguageBatches(data, training_digits("fit"), tiny_processor())
    batch = batches(0, 0)
    before = psutil.Process().memory_info().rss
    model = ErnieModel(SHAPE)
    loop = LoopConfig(num_shards=1, processes=1, checkpoint_seconds=1e9)
    stage = Stage(
        name="m",
        schedule=ScheduleConfig(num_steps=3, warmup_steps=0),
        batch=lambda step, shard: batch,
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=RouterConfig(),
    )
    trainer = Trainer(nn.ModuleDict({"model": model}), [stage], loop, OptimConfig(), Workers())
    peak: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            folder=Path(folder),
            fingerprint=None,
            stop_requested=lambda: len(peak) == 1,
            on_step=lambda _: peak.append(highest()),
        )
        trainer.run(run)
    assert batch.packed.vision is not None
    shard = Shard(
        tokens=len(batch.packed),
        vision_tokens=batch.packed.vision_rows.count,
        patches=len(batch.packed.vision.patches_PC),
        labels=len(batch.labels_R),
    )
    parameters = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    forecast = memory_forecast(parameters, parameters, SHAPE, OptimConfig(), loop, shard)
    kept = kept_by_autograd(model, batch)
    sys.stdout.write(json.dumps({"grown": peak[-1] - before, "kept": kept, "forecast": forecast}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
