"""Decode tokens per CPU-second against transformers' `generate` with its cache: same weights, prompts, threads and lengths.

Knows nothing about how either side works. Run: `python -m bench.decode [--batch 1 8] [--runs 5] [--tokens 128]`.

Both sides answer the same prompts greedily on one thread and never stop early. The time of one token's answer is taken off
that of the full answer, so prefill does not count. Time is CPU time, which on one thread is the wall time of an idle machine,
and the two sides take turns: other load on the machine meets both alike.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.peers import transformers_config, transformers_inputs
from bench.report import write_result
from bench.shapes import tiny_vl_34m
from ernie45.checkpoint import load_model
from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM

NUM_PROMPT_TOKENS = 64
EXPERT_IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")


def make_prompts(count: int) -> list[ModelInput]:
    """Text prompts of equal length with random tokens."""
    rng = np.random.default_rng(0)
    return [
        ModelInput(
            token_ids=rng.integers(3, 8000, NUM_PROMPT_TOKENS),
            is_vision=np.zeros(NUM_PROMPT_TOKENS, dtype=bool),
            positions=np.repeat(np.arange(NUM_PROMPT_TOKENS)[:, None], 3, axis=1),
            patches=np.zeros((0, 588), dtype=np.uint8),
            next_position=NUM_PROMPT_TOKENS,
        )
        for _ in range(count)
    ]


def make_twins() -> tuple[Any, LLM]:
    """transformers' model with random weights, and our engine with the same ones."""
    from transformers import Ernie4_5_VLMoeForConditionalGeneration

    torch.manual_seed(0)
    config = tiny_vl_34m()
    theirs = Ernie4_5_VLMoeForConditionalGeneration(transformers_config(config)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = LLM(load_model(folder), EngineConfig(prefix_cache=False, max_num_seqs=32))
    return theirs, ours


def their_answer(model: Any, prompts: list[ModelInput], num_tokens: int) -> list[tuple[int, ...]]:
    inputs = transformers_inputs(tiny_vl_34m(), prompts)
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    return [tuple(row) for row in out[:, NUM_PROMPT_TOKENS:].tolist()]


def our_answer(llm: LLM, prompts: list[ModelInput], num_tokens: int) -> list[tuple[int, ...]]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0)
    return [completion.token_ids for completion in llm.generate(prompts, params)]


def decode_seconds(answer: Callable[[int], object], num_tokens: int) -> float:
    """CPU seconds of all tokens but the first."""
    start = time.process_time()
    answer(1)
    middle = time.process_time()
    answer(num_tokens)
    return (time.process_time() - middle) - (middle - start)


def fastest_experts(model: Any, prompts: list[ModelInput]) -> str:
    """The setting of transformers' experts that decodes these prompts fastest; the model is left with it."""
    seconds = {}
    for name in EXPERT_IMPLEMENTATIONS:
        model.set_experts_implementation(name)
        their_answer(model, prompts, 2)
        seconds[name] = statistics.median(
            decode_seconds(lambda count: their_answer(model, prompts, count), 24) for _ in range(3)
        )
    best = min(seconds, key=lambda name: seconds[name])
    model.set_experts_implementation(best)
    return best


def measure(theirs: Any, ours: LLM, num_sequences: int, num_tokens: int, runs: int) -> dict[str, object]:
    """One row of the result: medians of alternating runs, and whether both gave the same tokens."""
    prompts = make_prompts(num_sequences)
    experts = fastest_experts(theirs, prompts)
    reference = their_answer(theirs, prompts, num_tokens)
    same = statistics.mean(
        left == right
        for a, b in zip(reference, our_answer(ours, prompts, num_tokens), strict=True)
        for left, right in zip(a, b, strict=True)
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        seconds[0].append(decode_seconds(lambda count: their_answer(theirs, prompts, count), num_tokens))
        seconds[1].append(decode_seconds(lambda count: our_answer(ours, prompts, count), num_tokens))
    their_rate, our_rate = (num_sequences * (num_tokens - 1) / statistics.median(side) for side in seconds)
    return {
        "batch": num_sequences,
        "transformers tokens/CPU-s": their_rate,
        "its experts": experts,
        "ernie45 tokens/CPU-s": our_rate,
        "ratio": our_rate / their_rate,
        "equal tokens": f"{same:.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    theirs, ours = make_twins()
    rows = [measure(theirs, ours, count, args.tokens, args.runs) for count in args.batch]
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if args.dry_run:
        return
    notes = [
        "model: 34 M parameters, VL (`bench/shapes.py`), random fp32 weights, 1 thread",
        f"{NUM_PROMPT_TOKENS} prompt tokens, {args.tokens} generated, greedy; median of {args.runs} alternating runs",
    ]
    path = write_result("decode", "Decode against transformers", rows, notes=notes, packages=("torch", "transformers"))
    print(path)


if __name__ == "__main__":
    main()
