"""The forecast of memory: against the growth of a real process, and its own arithmetic for shapes that fit no machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ernie45.config.presets import preset
from ernie45.config.train import LoopConfig, OptimConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.train.forecast import Shard, activation_bytes, memory_forecast, run_forecast
from ernie45.train.metrics import step_flops

PROGRAM = Path(__file__).with_name("measured_memory.py")
LOOP = LoopConfig(processes=1, num_shards=1)


def test_a_training_process_grows_as_was_forecast() -> None:
    """Total within 20 percent of the resident set's growth, activations within 35 percent of what autograd keeps.

    glibc is told to give freed memory back at once, as the forecast does not count what it would keep.
    """
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    env = os.environ | malloc | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, PROGRAM, "1500"], env=env, capture_output=True, text=True, check=True, timeout=120)
    measured = json.loads(done.stdout)
    assert measured["forecast"]["total"] == pytest.approx(measured["grown"], rel=0.2)
    assert measured["forecast"]["activations"] == pytest.approx(measured["kept"], rel=0.35)


@pytest.fixture(scope="module")
def released() -> dict[str, nn.Parameter]:
    """The released model's parameters, without memory."""
    return dict(nn.ModuleDict({"model": ErnieModel(preset("28b-a3b"), device="meta")}).named_parameters())


def test_the_released_model_is_forecast_without_memory(released: dict[str, nn.Parameter]) -> None:
    shape = preset("28b-a3b")
    count = sum(parameter.numel() for parameter in released.values())
    assert 29.3e9 < count < 29.5e9
    shard = Shard.of_budget(shape, 4096)
    adamw = OptimConfig(optimizer="adamw")
    whole = memory_forecast(released, released, shape, adamw, LOOP, shard)
    assert (whole["weights"], whole["gradients"], whole["optimizer"]) == (4 * count, 4 * count, 8 * count)
    in_bf16 = memory_forecast(released, released, shape, adamw, replace(LOOP, precision="bf16"), shard)
    assert in_bf16["weights"] == 6 * count
    assert in_bf16["activations"] < 0.7 * whole["activations"]
    shared = replace(LOOP, shard="full", processes=8, num_shards=8)
    eighth = memory_forecast(released, released, shape, adamw, shared, shard)
    assert eighth["optimizer"] == count
    head = {name: value for name, value in released.items() if "norm" in name}
    assert memory_forecast(released, head, shape, adamw, LOOP, shard)["gradients"] == 4 * sum(map(torch.numel, head.values()))
    averaged = memory_forecast(released, released, shape, adamw, replace(LOOP, export_average=True), shard)
    assert averaged["total"] - whole["total"] == 4 * count


def test_recomputation_is_forecast_to_keep_less() -> None:
    shape = preset("28b-a3b")
    shard = Shard.of_budget(shape, 4096)
    kinds = ("none", "routing", "full")
    none, routing, full = (activation_bytes(shape, replace(LOOP, recompute=kind), shard) for kind in kinds)
    assert full < routing < 0.4 * none


def test_tokens_and_operations_of_a_run() -> None:
    shape = preset("28b-a3b")
    shard = Shard.of_budget(shape, 1000)
    assert (shard.tokens, shard.vision_tokens, shard.patches, shard.labels) == (1000, 500, 2000, 500)
    run = run_forecast(shape, 10, 4, shard)
    assert run["tokens_at_most"] == 40_000
    assert run["flops_at_most"] == 40 * step_flops(shape, 500, 500, 2000)
    assert Shard.of_budget(shape, 1000, pictures=False).vision_tokens == 0
