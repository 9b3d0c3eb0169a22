"""`ernie45 convert`: write a checkpoint in another layout, with a progress bar.

Knows nothing about layouts (`checkpoint`).
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import one_of

LAYOUTS = ("pt", "native", "paddle")
SUMMARY = "write a checkpoint in another layout"
EXAMPLES = """\
layouts:
  pt       as the -PT release, flat config.json; vLLM and SGLang read it
  native   as transformers' own ERNIE classes read it
  paddle   as the -Paddle release: transposed, fused; FastDeploy reads it

examples:
  ernie45 convert ERNIE-4.5-VL-28B-A3B-PT out --layout paddle
  ernie45 convert tiny out --layout native

Tensors stream one at a time. DST appears only when it is complete.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a model folder in any of the layouts, or tiny")
    parser.add_argument("destination", metavar="DST", type=Path, help="the new folder; must not exist")
    parser.add_argument("--layout", required=True, type=one_of(*LAYOUTS), metavar="LAYOUT", help=f"one of {', '.join(LAYOUTS)}")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ernie45.checkpoint import convert, resolve_model

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tensors"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"writing {args.layout}", total=None)
        convert(
            resolve_model(args.source),
            args.destination,
            args.layout,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"{args.destination}: complete, layout {args.layout}")
