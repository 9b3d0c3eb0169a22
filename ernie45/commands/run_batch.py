"""`ernie45 run-batch`: answers to a file of requests in OpenAI's batch format.

Knows nothing about the protocol (`server`).
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ernie45.commands.arguments import whole_number
from ernie45.entrypoints.flag_table import FLAGS
from ernie45.entrypoints.flags import add_flags, to_config

if TYPE_CHECKING:
    from ernie45.server.batch import BatchCounts

SUMMARY = "answer a file of requests, one a line, without a server"
EXAMPLES = """\
examples:
  ernie45 run-batch questions.jsonl answers.jsonl --model tiny
  ernie45 run-batch in.jsonl out.jsonl --model DIR --max-num-seqs 128

A line of the input, as OpenAI's batches have it:
  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
   "body": {"messages": [{"role": "user", "content": "What is 47+12?"}]}}
The url may also be /v1/completions or /v1/responses.
A line of the output has custom_id, and response or error. Run again with the
same files after an interruption: what is answered is not asked again.
Exit code 1: some lines have an error.
"""
# What a batch has in common with a server.
_GROUPS = ("engine", "KV cache", "images and video", "model")
_NAMES = ("--served-model-name", "--max-logprobs", "--max-body-bytes")
BATCH_FLAGS = tuple(flag for flag in FLAGS if flag.group in _GROUPS or flag.name in _NAMES)
# Per sequence of a step: some are being read, decoded or written meanwhile.
_REQUESTS_PER_SEQUENCE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="INPUT", help="requests, one JSON object a line")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="answers; is added to, if it is there")
    parser.add_argument("--model", default="tiny", metavar="MODEL", help="a model folder, or tiny (default)")
    parser.add_argument(
        "--concurrency", type=whole_number(1, 100_000), metavar="N", help="requests under way at once (4 for each sequence)"
    )
    add_flags(parser, BATCH_FLAGS)


def run(args: argparse.Namespace) -> int:
    config = replace(to_config(args, BATCH_FLAGS), quiet=True, max_num_requests=10**9, request_timeout_s=None)
    concurrency = args.concurrency or _REQUESTS_PER_SEQUENCE * config.engine.max_num_seqs

    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ernie45.server.batch import run_batch
    from ernie45.server.run import make_service

    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(counts: "BatchCounts") -> None:
            done = counts.num_before + counts.num_answered
            bar.update(task, description="answers", total=counts.num_lines, completed=done)

        async def main() -> "BatchCounts":
            return await run_batch(make_service(config), args.input, args.output, concurrency, show)

        counts = asyncio.run(main())
    print(summary(counts, time.monotonic() - start), file=sys.stderr)
    return 1 if counts.num_errors else 0


def summary(counts: "BatchCounts", seconds: float) -> str:
    """One line about a run that has ended."""
    before = f", {counts.num_before} were there before" if counts.num_before else ""
    errors = f", {counts.num_errors} with an error" if counts.num_errors else ""
    speed = f"{counts.num_completion_tokens / seconds:.0f} tokens/s" if seconds > 0 else "at once"
    return (
        f"{counts.num_answered} answered{before}{errors}: {counts.num_prompt_tokens:,} tokens in, "
        f"{counts.num_completion_tokens:,} out, {seconds:.1f} s, {speed}"
    )
