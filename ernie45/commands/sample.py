"""`ernie45 sample`: a model's own answers as training data, where a reward accepts them.

Knows nothing about how answers are made or judged (`recipes.rejection`).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ernie45.commands.arguments import one_of, real_number, whole_number
from ernie45.config.rejection import RejectionConfig
from ernie45.config.rewards import RewardsConfig

if TYPE_CHECKING:
    from ernie45.recipes.rejection import Counts

SUMMARY = "make training data of a model's right answers"
EXAMPLES = """\
examples:
  ernie45 sample prompts.jsonl --model DIR --out right.jsonl
  ernie45 sample p.csv --model DIR --reward math --samples 16 --out right.jsonl
  ernie45 train sft --recipe vision --model DIR --data right.jsonl

A prompt has messages (or question) and answer. Several answers are sampled to
each (rejection sampling); those of the reward's threshold or more are kept,
each text once.
Interrupted (Ctrl-C, kill -9)? The same command goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = RejectionConfig()
    parser.add_argument("prompts", nargs="+", type=Path, metavar="FILE", help="prompts with answers, in any form")
    parser.add_argument("--model", required=True, metavar="MODEL", help="who answers: a model folder, or tiny")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="conversations, as JSON lines")
    parser.add_argument("--reward", default="exact", metavar="SPEC", help="what judges the answers (exact)")
    parser.add_argument("--domains", default="", metavar="JSON", help="rewards by domain: a JSON object or file")
    parser.add_argument("--samples", type=whole_number(1), default=own.samples, metavar="N", help="answers a prompt (4)")
    parser.add_argument("--keep", type=whole_number(1), default=own.keep, metavar="N", help="of the right ones (1)")
    parser.add_argument("--threshold", type=float, default=own.threshold, metavar="X", help="least reward (1)")
    parser.add_argument("--thinking", type=one_of("on", "off"), default=own.thinking, metavar="WHEN", help="on or off (on)")
    parser.add_argument("--temperature", type=real_number(0, 100), default=own.temperature, metavar="T", help="of sampling (1)")
    parser.add_argument("--top-p", type=real_number(0, 1), default=own.top_p, metavar="P", help="of sampling (0.95)")
    parser.add_argument("--max-tokens", type=whole_number(1), default=own.max_tokens, metavar="N", help="an answer (2048)")
    parser.add_argument("--seed", type=whole_number(0), default=own.seed, metavar="N", help="of all draws (0)")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ernie45.recipes.rejection import Job, sample

    names = ("samples", "keep", "threshold", "thinking", "temperature", "top_p", "max_tokens", "seed")
    config = RejectionConfig(**{name: getattr(args, name) for name in names})
    rewards = RewardsConfig(spec="" if args.domains and args.reward == "exact" else args.reward, domains=args.domains)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, counts: "Counts") -> None:
            bar.update(task, completed=done, total=total, description=f"{counts.kept} kept")

        job = Job(model=args.model, prompts=tuple(args.prompts), out=args.out, config=config, rewards=rewards, progress=show)
        counts = sample(job)
    if counts.skipped:
        sys.stderr.write(f"note: {counts.skipped} records cannot be used; ernie45 data check says why\n")
    share = counts.solved / max(counts.prompts, 1)
    print(f"{args.out}: {counts.kept} answers to {counts.solved} of {counts.prompts} prompts ({share:.0%})")
