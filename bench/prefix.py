"""What the prefix cache saves of a second turn, and what a long prompt costs the streams beside it.

Knows nothing about how either works. Run: `python -m bench.prefix [--conversations 5] [--streams 8] [--prompt 16000]`.

1. A conversation of 4,000 tokens with two pictures, then one more question: time to the first token of both turns.
2. Streams that decode, and meanwhile a prompt of 16,000 tokens: the time between two tokens of a stream, before and during.
"""

import argparse
import asyncio
import base64
import io
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.clients import Reply, post
from bench.report import write_result
from bench.servers import Server, our_server
from bench.serving_model import make_folder, serving_config

CONTEXT = 32768
CONVERSATION_TOKENS, PICTURE_SIDE = 4000, 560
SECONDS_BEFORE = 2.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def picture(rng: np.random.Generator) -> dict[str, Any]:
    """A part of a message with a picture of noise, 400 tokens."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}}


def words(rng: np.random.Generator, count: int) -> str:
    """Text of about as many tokens."""
    return " ".join(str(number) for number in rng.integers(0, 9, count // 2))


def conversation(seed: int) -> list[dict[str, Any]]:
    """About 4,000 tokens in five messages, two of them with a picture."""
    rng = np.random.default_rng(seed)
    share = (CONVERSATION_TOKENS - 2 * (PICTURE_SIDE // 28) ** 2) // 5
    messages: list[dict[str, Any]] = []
    for index in range(5):
        parts = [{"type": "text", "text": words(rng, share)}]
        if index in (0, 2):
            parts.insert(0, picture(rng))
        role = "user" if index % 2 == 0 else "assistant"
        messages.append({"role": role, "content": parts if role == "user" else parts[0]["text"]})
    return messages


async def ask(port: int, messages: list[dict[str, Any]], max_tokens: int) -> Reply:
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "metadata": {"enable_thinking": False}}
    reply = await post(port, CHAT, body)
    assert reply.ok, reply
    return reply


def first_token(reply: Reply) -> float:
    """Seconds to the first token; the event before it only names the role."""
    return reply.times[1] - reply.began


async def two_turns(port: int, seed: int) -> tuple[float, float, dict[str, Any], dict[str, Any]]:
    """Seconds to the first token of both turns, and what each says about usage."""
    messages = conversation(seed)
    first = await ask(port, messages, 16)
    more = [{"role": "assistant", "content": "so it is"}, {"role": "user", "content": "And what is in the second picture?"}]
    second = await ask(port, messages + more, 16)
    return first_token(first), first_token(second), first.last["usage"], second.last["usage"]


def measure_turns(server: Server, count: int) -> dict[str, object]:
    found = [asyncio.run(two_turns(server.port, seed)) for seed in range(count + 1)][1:]
    first, second = statistics.median(run[0] for run in found), statistics.median(run[1] for run in found)
    usage, later = found[0][2], found[0][3]
    num_pictures = usage["prompt_tokens_details"]["image_tokens"]
    return {
        "what": f"second turn behind {usage['prompt_tokens']} tokens, {num_pictures} of pictures",
        "before": f"TTFT of the first turn {first * 1e3:.0f} ms",
        "then": f"TTFT {second * 1e3:.0f} ms, {later['prompt_tokens_details']['cached_tokens']} tokens cached",
        "ratio": second / first,
        "target": "at most 0.2",
    }


async def long_prompt(port: int, num_streams: int, num_prompt: int) -> tuple[list[float], list[float], float]:
    """Seconds between two tokens of the streams: before the long prompt, and until its first token; and its TTFT."""
    rng = np.random.default_rng(num_streams)
    common = {"temperature": 0, "ignore_eos": True, "stream": True}
    replies = [Reply() for _ in range(num_streams)]
    bodies = [common | {"prompt": rng.integers(300, 8000, 32).tolist(), "max_tokens": 16000} for _ in replies]
    tasks = [
        asyncio.create_task(post(port, COMPLETIONS, body, into=reply)) for body, reply in zip(bodies, replies, strict=True)
    ]
    await asyncio.sleep(SECONDS_BEFORE)
    prompt = rng.integers(300, 8000, num_prompt).tolist()
    long = await post(port, COMPLETIONS, common | {"prompt": prompt, "max_tokens": 2})
    assert long.ok, long
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    before, during = [], []
    for reply in replies:
        for left, right in zip(reply.times, reply.times[1:], strict=False):
            if long.began <= left and right <= long.times[0]:
                during.append(right - left)
            elif long.began - SECONDS_BEFORE / 2 <= left and right < long.began:
                before.append(right - left)
    return before, during, long.ttft


def measure_interference(server: Server, num_streams: int, num_prompt: int) -> dict[str, object]:
    before, during, ttft = asyncio.run(long_prompt(server.port, num_streams, num_prompt))
    median, p99 = statistics.median(during), float(np.percentile(during, 99))
    calm = statistics.median(before)
    return {
        "what": f"{num_streams} streams beside a prompt of {num_prompt} tokens, which takes {ttft:.1f} s",
        "before": f"between tokens, median {calm * 1e3:.0f} ms, p99 {np.percentile(before, 99) * 1e3:.0f} ms",
        "then": f"median {median * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms ({p99 / calm:.1f} times the median before)",
        "ratio": p99 / median,
        "target": "below 3",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--conversations", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16000)
    parser.add_argument("--port", type=int, default=18320)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), torch.float32, serving_config(max_position_embeddings=CONTEXT))
        with our_server(folder, args.port, "--num-gpu-blocks-override", "16384") as server:
            rows = [measure_turns(server, args.conversations), measure_interference(server, args.streams, args.prompt)]
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if not args.dry_run:
        notes = [
            f"model: 34 M parameters, VL (`bench/shapes.py`) with a context of {CONTEXT}, random fp32 weights, 1 thread",
            f"turns: medians of {args.conversations} conversations after one that does not count",
            "streams: the ratio is p99 over median, both of the time between two tokens while the long prompt is computed",
        ]
        print(write_result("prefix", "Second turns and long prompts", rows, notes=notes))


if __name__ == "__main__":
    main()
