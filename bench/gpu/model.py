"""The model on one GPU: bf16 parity, then prefill and decode of the 28B shape against transformers and the roofline.

Knows nothing about serving. Run: `python -m bench.gpu.model [--preset 28b-a3b] [--prefill 2048] [--batch 1 8 32]`;
`--device cpu --preset tiny --dry-run` goes through the same code without a GPU.

Weights are random: speed does not depend on them, and parity is judged on a small model whose weights both sides share.
The roofline of decode is the bytes of the weights that one step reads (experts by how many distinct ones the batch is
expected to touch) over the bandwidth of a plain copy, measured in the same run.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.peers import transformers_config, transformers_inputs
from bench.report import write_result
from bench.train_step import DTYPES, make_sequence, make_twins
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.presets import preset
from ernie45.model.batch import PackedBatch, pack, pool_rows
from ernie45.model.cache import CacheStep, PagedKVCache
from ernie45.model.multimodal import ErnieModel

PAGE_SIZE = 64


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def median_seconds(step: Callable[[], object], device: str, runs: int) -> float:
    step()
    times = []
    for _ in range(runs):
        synchronise(device)
        start = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth(device: str, runs: int) -> float:
    """Bytes per second read plus written by a plain copy of 2 GiB (64 MiB on a CPU)."""
    source = torch.empty(2**31 if device != "cpu" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device, runs)


def parity(device: str) -> dict[str, object]:
    """Relative error of bf16 logits on the device, ours and theirs, against fp32 on the CPU."""
    theirs, ours = make_twins(DTYPES["fp32"])
    inputs = [make_sequence(0)]
    arguments = transformers_inputs(ours.config, inputs)
    with torch.inference_mode():
        exact = theirs.eval()(**arguments).logits[0]
        theirs, ours = theirs.to(device, torch.bfloat16), ours.to(device, torch.bfloat16)
        moved = {k: v.to(device, torch.bfloat16 if v.is_floating_point() else v.dtype) for k, v in arguments.items()}
        both = theirs(**moved).logits[0], ours.logits(ours(pack(inputs, device)).hidden_TD)
    errors = [float((logits.float().cpu() - exact).norm() / exact.norm()) for logits in both]
    return {
        "what": "bf16 parity, 34 M",
        "transformers": f"{errors[0]:.4f}",
        "ernie45": f"{errors[1]:.4f}",
        "roofline": "fp32",
        "note": "relative error",
    }


def random_text(config: ModelConfig, length: int, seed: int = 0) -> ModelInput:
    return ModelInput(
        token_ids=np.random.default_rng(seed).integers(3, config.vocab_size // 2, length),
        is_vision=np.zeros(length, bool),
        positions=np.repeat(np.arange(length)[:, None], 3, axis=1),
        patches=np.zeros((0, 588), np.uint8),
        next_position=length,
    )


def decode_bytes(config: ModelConfig, batch: int) -> float:
    """Weight bytes in bf16 that a decode step of `batch` text tokens reads, in expectation over uniform routing."""
    with torch.device("meta"):
        model = ErnieModel(config, dtype=torch.bfloat16, device="meta")
    total = 0.0
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("vision", "resampler", "mtp")) or (name.startswith("embed") and model.lm_head):
            continue
        size = parameter.numel() * parameter.element_size()
        pool = config.pool("text")
        if pool is not None and ".pools.text." in name and "router" not in name:
            size *= 1 - (1 - pool.num_active / pool.num_experts) ** batch
        total += size
    return total


def our_runs(args: argparse.Namespace, config: ModelConfig) -> dict[str, float]:
    """Seconds of a prefill and of one decode step at each batch size."""
    model = ErnieModel(config, dtype=torch.bfloat16, device=args.device)
    prompt = pack([random_text(config, args.prefill)], args.device)
    seconds = {}
    with torch.inference_mode():
        seconds["prefill"] = median_seconds(lambda: model.logits(model(prompt).hidden_TD[-1:]), args.device, args.runs)
        for batch in args.batch:
            step = decode_step(config, batch, args.context, args.device)
            seconds[f"decode {batch}"] = median_seconds(
                lambda step=step: model.logits(model(step[0], cache=step[1]).hidden_TD), args.device, args.runs
            )
    return seconds


def decode_step(config: ModelConfig, batch: int, context: int, device: str) -> tuple[PackedBatch, CacheStep]:
    """One new token for each of `batch` sequences that have `context` tokens in the cache after it."""
    pages_each = -(-context // PAGE_SIZE)
    cache = PagedKVCache(config, num_pages=batch * pages_each, page_size=PAGE_SIZE, dtype=torch.bfloat16, device=device)
    table = torch.arange(batch * pages_each, device=device).view(batch, pages_each)
    text, vision = pool_rows(np.zeros(batch, bool), device)
    packed = PackedBatch(
        token_ids_T=torch.full((batch,), 5, device=device),
        positions_TX=torch.full((batch, 3), context - 1, device=device),
        cu_seqlens=tuple(range(batch + 1)),
        text_rows=text,
        vision_rows=vision,
    )
    slots = table[:, -1] * PAGE_SIZE + (context - 1) % PAGE_SIZE
    return packed, CacheStep(cache=cache, slots_T=slots, page_table_BN=table, context_lens=(context,) * batch)


def their_runs(args: argparse.Namespace, config: ModelConfig) -> dict[str, float]:
    """The same with transformers: its dynamic cache, SDPA and grouped_mm experts."""
    from transformers import DynamicCache, Ernie4_5_VLMoeForConditionalGeneration

    with torch.device(args.device):
        model: Any = Ernie4_5_VLMoeForConditionalGeneration._from_config(
            transformers_config(config), attn_implementation="sdpa", experts_implementation="grouped_mm", dtype=torch.bfloat16
        ).eval()
    ids = torch.from_numpy(random_text(config, args.prefill).token_ids)[None].to(args.device)
    seconds = {}
    with torch.inference_mode():
        seconds["prefill"] = median_seconds(
            lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1), args.device, args.runs
        )
        for batch in args.batch:
            cache = DynamicCache(config=model.config.get_text_config())
            prompt = ids[:, : args.context].repeat(batch, 1)[:, : args.context - 1]
            model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)

            def step(cache: Any = cache, batch: int = batch) -> None:
                model(input_ids=ids[:, :1].repeat(batch, 1), past_key_values=cache, use_cache=True)
                cache.crop(-1)

            seconds[f"decode {batch}"] = median_seconds(step, args.device, args.runs)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="28b-a3b")
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache while decoding")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    config = preset(args.preset)
    rows = [parity(args.device)]
    bandwidth = copy_bandwidth(args.device, args.runs)
    # One model at a time: two of 55 GiB do not fit.
    ours = our_runs(args, config)
    gc.collect()
    if args.device != "cpu":
        torch.cuda.empty_cache()
    theirs = their_runs(args, config)
    for name, seconds in ours.items():
        batch = int(name.split()[1]) if name.startswith("decode") else 0
        floor = decode_bytes(config, batch) / bandwidth if batch else None
        rows.append(
            {
                "what": f"{args.prefill} tokens, {name}" if not batch else f"{name}, context {args.context}",
                "transformers": f"{theirs[name] * 1e3:.2f} ms",
                "ernie45": f"{seconds * 1e3:.2f} ms",
                "roofline": f"{floor * 1e3:.2f} ms" if floor else "-",
                "note": f"{theirs[name] / seconds:.2f}x transformers"
                + (f", {floor / seconds:.0%} of roofline" if floor else ""),
            }
        )
    for row in rows:
        print(row)
    if not args.dry_run:
        notes = [f"shape {args.preset}, random bf16 weights; copy bandwidth {bandwidth / 1e9:.0f} GB/s; median of {args.runs}"]
        print(write_result("model", "The model on one GPU", rows, notes=notes, packages=("torch", "transformers")))


if __name__ == "__main__":
    main()
