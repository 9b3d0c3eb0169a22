"""`ernie45 convert`: write a checkpoint in another layout, with a progress bar.

Knows nothing about layouts (`checkpoint`).
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import one_of

_NAME_WIDTH = 24
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
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from ernie45.checkpoint.convert import convert

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading the headers", total=None)

        def show(done: int, total: int, tensor: str) -> None:
            progress.update(task, completed=done, total=total, description=tensor[-_NAME_WIDTH:])

        convert(args.source, args.destination, args.layout, progress=show)
        progress.update(task, description="done")
    print(f"{args.destination}: layout {args.layout}, complete")
