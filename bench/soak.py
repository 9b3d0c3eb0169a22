"""Memory over thousands of mixed requests: what both processes hold after a warm-up and at the end, and whether pages leak.

Knows nothing about how the server works. Run: `python -m bench.soak [--requests 10000] [--warm-up 1000] [--clients 48]`.

Text and pictures, streams and whole answers, chat and completions, several answers to one prompt, log-probabilities, clients
that leave at once or in the middle, and requests that are refused. The pages are few, so that the warm-up has used each.
"""

import argparse
import asyncio
import base64
import gc
import io
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.clients import Reply, post
from bench.report import write_result
from bench.servers import Server, our_server, resident_bytes

NUM_PAGES, NUM_PICTURES = 1024, 64
LIMIT = 0.02
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Request:
    """kind: how it is counted."""

    kind: str
    path: str
    body: dict[str, Any]
    leave_after: int | None = None
    expected: int = 200


@dataclass
class Outcome:
    """Counts by kind, and the first answers that were not as expected."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def take(self, request: Request, reply: Reply) -> None:
        self.counts[request.kind] += 1
        left = request.leave_after is not None
        as_expected = not reply.error if left else reply.status == request.expected and reply.ended and not reply.error
        if not as_expected and len(self.wrong) < 5:
            self.wrong.append(f"{request.kind}: status {reply.status} {reply.error} {reply.body[:200]!r}")


def pictures(count: int) -> list[str]:
    """Data URLs of different pictures."""
    urls = []
    for index in range(count):
        image = Image.new("RGB", (56 + 28 * (index % 3), 84), (index % 256, 255 - index % 256, index * 7 % 256))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def make_request(rng: random.Random, urls: list[str]) -> Request:
    """The next of an endless mix."""
    kind = rng.choices(KINDS, SHARES)[0]
    stream, text = rng.random() < 0.5, " ".join(str(rng.randrange(100)) for _ in range(rng.randrange(2, 40)))
    content: Any = text
    if kind == "picture" or (kind == "left" and rng.random() < 0.3):
        content = [{"type": "image_url", "image_url": {"url": rng.choice(urls)}}, {"type": "text", "text": text}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": rng.randrange(1, 12)}
    body |= {"stream": stream, "temperature": rng.choice([0, 0.8]), "metadata": {"enable_thinking": rng.random() < 0.5}}
    if kind == "refused":
        return Request(kind, CHAT, body | {"temperature": -1}, expected=400)
    if kind == "left":
        return Request(kind, CHAT, body | {"stream": True, "max_tokens": 200, "ignore_eos": True}, leave_after=rng.randrange(6))
    if kind == "completion":
        return Request(kind, COMPLETIONS, {"prompt": text, "max_tokens": 4, "echo": True, "logprobs": 2})
    if kind == "choices":
        body |= {"n": 3, "temperature": 1.0, "logprobs": True, "top_logprobs": 2}
    return Request(kind, CHAT, body)


KINDS, SHARES = ("text", "picture", "left", "completion", "choices", "refused"), (40, 25, 15, 10, 5, 5)


async def run(server: Server, total: int, warm_up: int, num_clients: int) -> tuple[list[dict[str, int]], Outcome, float]:
    """Send them all; what the processes held after the warm-up and at the end, what came back, and the seconds."""
    rng, urls, outcome = random.Random(0), pictures(NUM_PICTURES), Outcome()
    began = time.perf_counter()
    memory: list[dict[str, int]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("requests", total=total)
        for count in (warm_up, total - warm_up):
            left = iter(range(count))

            async def client(left: Any = left) -> None:
                for _ in left:
                    request = make_request(rng, urls)
                    outcome.take(request, await post(server.port, request.path, request.body, leave_after=request.leave_after))
                    progress.advance(bar)

            await asyncio.gather(*(client() for _ in range(num_clients)))
            await asyncio.to_thread(server.wait_idle)
            memory.append({"server": resident_bytes(server.process), "engine": resident_bytes(server.engine)})
            gc.collect()
    return memory, outcome, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--port", type=int, default=18330)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    with our_server("tiny", args.port, "--num-gpu-blocks-override", str(NUM_PAGES)) as server:
        memory, outcome, seconds = asyncio.run(run(server, args.requests, args.warm_up, args.clients))
        engine = server.wait_idle()["engine"]
    rows: list[dict[str, object]] = []
    for name in ("server", "engine"):
        before, after = (found[name] / 2**20 for found in memory)
        rows.append(
            {"process": name, "MiB after warm-up": before, "MiB at the end": after, "growth": f"{after / before - 1:+.2%}"}
        )
    print(*rows, outcome, engine, f"{seconds:.0f} s", sep="\n")
    ok = not outcome.wrong and engine["num_free_pages"] == engine["num_pages"]
    ok &= all(memory[1][name] / memory[0][name] - 1 < LIMIT for name in memory[0])
    if not args.dry_run:
        notes = [
            f"the shipped model, {args.requests:,} requests of {args.clients} clients in {seconds:.0f} s, "
            f"the first {args.warm_up:,} to warm up: "
            + ", ".join(f"{count:,} {kind}" for kind, count in outcome.counts.items()),
            "`left`: the client closes the connection, at once or in the middle of a stream; `refused`: a 400 is right",
            f"answers that were not as expected: {len(outcome.wrong)}",
            f"pages free or cached at the end: {engine['num_free_pages']} of {engine['num_pages']}",
            f"target: growth below {LIMIT:.0%}; " + ("met" if ok else "MISSED"),
        ]
        print(write_result("soak", "Memory over mixed requests", rows, notes=notes))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
