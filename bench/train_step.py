"""Forward and backward tokens per CPU-second against transformers' own ERNIE class: same weights, batch, loss and threads.

Knows nothing about optimisers. Run: `python -m bench.train_step [--runs 7] [--dtypes fp32 bf16]`.

Both take the loss over the same labels and check that it is equal. transformers gets its fastest settings: SDPA attention and
grouped_mm experts. The two take turns. CPU time is counted, not wall time, so that a shared machine counts less.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.peers import transformers_config, transformers_inputs
from bench.report import write_result
from bench.shapes import tiny_vl_34m
from ernie45.checkpoint import load_model
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.cross_entropy import linear_cross_entropy
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions

NUM_SEQUENCES, SEQUENCE_LENGTH, GRID = 4, 512, (1, 8, 8)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LABELS = {"all text": 0.0, "answers (half)": 0.5}
"""Share of each sequence that has no label: pretraining trains on all text, supervised tuning on the answers."""


class Batch(NamedTuple):
    """inputs for us; arguments for transformers; labels [B, S], -100 where there is none."""

    inputs: list[ModelInput]
    arguments: dict[str, Tensor]
    labels: Tensor


def make_sequence(seed: int) -> ModelInput:
    """512 tokens: text, a picture of 64 patches, text."""
    rng, tokens = np.random.default_rng(seed), tiny_vl_34m().tokens
    ids = rng.integers(3, 8000, SEQUENCE_LENGTH)
    offset, length = 201, num_media_tokens(GRID)
    ids[offset : offset + length] = tokens.image_patch
    ids[offset - 1], ids[offset + length] = tokens.image_start, tokens.image_end
    positions = rope_positions(len(ids), [MediaSpan(offset, GRID)])
    return ModelInput(
        token_ids=ids,
        is_vision=np.isin(ids, tokens.vision_ids),
        positions=positions.positions_SX,
        patches=rng.integers(0, 256, (int(np.prod(GRID)), 588), dtype=np.uint8),
        media=(MediaItem(kind="image", grid=GRID, offset=offset, length=length, content_hash=str(seed)),),
        next_position=positions.next_position,
    )


def make_batch(unlabelled: float) -> Batch:
    inputs = [make_sequence(seed) for seed in range(NUM_SEQUENCES)]
    arguments = transformers_inputs(tiny_vl_34m(), inputs)
    # No padding: without a mask transformers takes its faster causal kernel.
    del arguments["attention_mask"]
    labels = arguments["input_ids"].masked_fill(arguments["moe_mm_token_type_ids"] > 0, -100)
    labels[:, : int(SEQUENCE_LENGTH * unlabelled)] = -100
    return Batch(inputs, arguments, labels)


def their_step(model: Any, batch: Batch) -> float:
    model.zero_grad(set_to_none=True)
    loss = model(**batch.arguments, labels=batch.labels, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


def our_step(model: ErnieModel, batch: Batch) -> float:
    model.zero_grad(set_to_none=True)
    targets_T = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=-100).flatten()
    rows_R = (targets_T != -100).nonzero()[:, 0]
    hidden_TD = model(pack(batch.inputs)).hidden_TD
    weights_R = torch.full((len(rows_R),), 1 / len(rows_R))
    loss = linear_cross_entropy(hidden_TD[rows_R], model.head_weight, targets_T[rows_R], weights_R).loss
    loss.backward()
    return float(loss.detach())


def cpu_seconds(step: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    step()
    return time.process_time() - start


def make_twins(dtype: torch.dtype) -> tuple[Any, ErnieModel]:
    from transformers import Ernie4_5_VLMoeForConditionalGeneration

    torch.manual_seed(0)
    theirs = Ernie4_5_VLMoeForConditionalGeneration._from_config(
        transformers_config(tiny_vl_34m()), attn_implementation="sdpa", experts_implementation="grouped_mm", dtype=dtype
    ).train()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, load_model(folder, dtype=dtype)


def measure(dtype: str, labels: str, runs: int) -> dict[str, object]:
    """One row: medians of alternating runs."""
    theirs, ours = make_twins(DTYPES[dtype])
    batch = make_batch(LABELS[labels])
    for name, value in batch.arguments.items():
        if value.is_floating_point():
            batch.arguments[name] = value.to(DTYPES[dtype])
    losses = their_step(theirs, batch), our_step(ours, batch)
    assert abs(losses[0] - losses[1]) < (1e-4 if dtype == "fp32" else 0.05), losses
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        seconds[0].append(cpu_seconds(lambda: their_step(theirs, batch)))
        seconds[1].append(cpu_seconds(lambda: our_step(ours, batch)))
    num_tokens = NUM_SEQUENCES * SEQUENCE_LENGTH
    rates = [num_tokens / statistics.median(side) for side in seconds]
    ratios = sorted(their / our for their, our in zip(*seconds, strict=True))
    return {
        "dtype": dtype,
        "labels": labels,
        "transformers tokens per CPU-s": rates[0],
        "ernie45 tokens per CPU-s": rates[1],
        "ratio": statistics.median(ratios),
        "ratio, worst to best run": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        "losses": f"{losses[0]:.5f} / {losses[1]:.5f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(dtype, labels, args.runs) for dtype in args.dtypes for labels in LABELS]
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if args.dry_run:
        return
    notes = [
        f"model: 34 M parameters, VL (`bench/shapes.py`), random weights, {args.threads} thread(s)",
        f"batch: {NUM_SEQUENCES} x {SEQUENCE_LENGTH} tokens with a picture of 64 patches each; forward, loss, backward; "
        f"ratio: median of {args.runs} alternating runs",
    ]
    path = write_result(
        "train_step", "Training step against transformers", rows, notes=notes, packages=("torch", "transformers")
    )
    print(path)


if __name__ == "__main__":
    main()
