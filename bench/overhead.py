"""What the HTTP path costs: a server's tokens a second at full batch against those of the bare engine in process.

Knows nothing about how either works. Run: `python -m bench.overhead [--streams 32] [--tokens 256] [--runs 5]`.

Both answer the same prompts of token ids, greedily and to the same length, with the same weights on one thread; the time is
from the first request to the last token, prompts included, and the two take turns. The server is the real one: a process for
HTTP, one for the engine, and beside them one process with all the streaming clients, so two cores do the work of three.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.clients import post
from bench.report import write_result
from bench.servers import Server, cpu_seconds, our_server
from bench.serving_model import make_folder
from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM

NUM_PROMPT_TOKENS = 64
TARGET = 0.85


def make_prompts(count: int, round_number: int) -> list[list[int]]:
    """Random token ids, new in every round so that no prompt is cached."""
    rng = np.random.default_rng(round_number)
    return rng.integers(300, 8000, (count, NUM_PROMPT_TOKENS)).tolist()


def run_bare(llm: LLM, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
    inputs = [text_input(prompt) for prompt in prompts]
    cpu, wall = time.process_time(), time.perf_counter()
    done = llm.generate(inputs, SamplingParams(temperature=0, max_tokens=num_tokens))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = sum(len(completion.token_ids) for completion in done)
    assert count == len(prompts) * num_tokens, count
    return {"rate": count / wall, "engine": cpu / count}


def text_input(ids: list[int]) -> ModelInput:
    length = len(ids)
    return ModelInput(
        token_ids=np.array(ids),
        is_vision=np.zeros(length, dtype=bool),
        positions=np.repeat(np.arange(length)[:, None], 3, axis=1),
        patches=np.zeros((0, 588), dtype=np.uint8),
        next_position=length,
    )


def run_served(server: Server, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
    engine, api = server.engine, server.process
    before = cpu_seconds(engine), cpu_seconds(api), time.process_time()
    wall = time.perf_counter()
    count = asyncio.run(_ask(server.port, prompts, num_tokens))
    wall = time.perf_counter() - wall
    after = cpu_seconds(engine), cpu_seconds(api), time.process_time()
    assert count == len(prompts) * num_tokens, count
    engine_s, api_s, client_s = ((end - begin) / count for begin, end in zip(before, after, strict=True))
    return {"rate": count / wall, "engine": engine_s, "api": api_s, "clients": client_s}


async def _ask(port: int, prompts: list[list[int]], num_tokens: int) -> int:
    common = {"max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    common["stream_options"] = {"include_usage": True}
    bodies = [common | {"prompt": prompt} for prompt in prompts]
    replies = await asyncio.gather(*(post(port, "/v1/completions", body) for body in bodies))
    assert all(reply.ok for reply in replies), replies[0]
    return sum(reply.num_tokens for reply in replies)


def measure(server: Server, llm: LLM, num_streams: int, num_tokens: int, runs: int) -> list[dict[str, object]]:
    """The two rows, medians of runs in turns; a first run of each counts for nothing."""
    bare, served = [], []
    for index in range(runs + 1):
        prompts = make_prompts(num_streams, index)
        bare.append(run_bare(llm, prompts, num_tokens))
        served.append(run_served(server, prompts, num_tokens))
    share = statistics.median(b["rate"] / a["rate"] for a, b in zip(bare[1:], served[1:], strict=True))
    rows: list[dict[str, object]] = []
    for name, found in (("engine in process", bare[1:]), ("over HTTP", served[1:])):
        rows.append({"path": name, "tokens/s": statistics.median(run["rate"] for run in found)})
        for part in ("engine", "api", "clients"):
            known = [1e6 * run[part] for run in found if part in run]
            rows[-1][f"{part}, CPU µs/token"] = statistics.median(known) if known else "-"
    rows[0]["share of tokens/s"] = "100%"
    rows[1]["share of tokens/s"] = f"{share:.0%}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--port", type=int, default=18310)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), torch.float32)
        llm = LLM.load(folder, EngineConfig(max_num_seqs=args.streams))
        with our_server(folder, args.port, "--max-num-seqs", str(args.streams)) as server:
            rows = measure(server, llm, args.streams, args.tokens, args.runs)
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if not args.dry_run:
        notes = [
            "model: 34 M parameters, VL (`bench/shapes.py`), random fp32 weights, 1 thread",
            f"{args.streams} streams at once, {NUM_PROMPT_TOKENS} prompt tokens and {args.tokens} generated each, greedy",
            f"median of {args.runs} runs in turns; target: at least {TARGET:.0%} of the engine's tokens/s",
            "one process has all clients; it and the HTTP process share the core that the engine leaves free",
        ]
        print(write_result("overhead", "The whole HTTP path against the bare engine", rows, notes=notes))


if __name__ == "__main__":
    main()
