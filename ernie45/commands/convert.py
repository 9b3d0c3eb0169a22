"""`ernie45 convert`: write a checkpoint in another layout or with an adapter merged into it, with a progress bar.

Knows nothing about layouts and adapters (`checkpoint`).
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import one_of
from ernie45.config.errors import ConfigError

_NAME_WIDTH = 24
LAYOUTS = ("pt", "native", "paddle")
SUMMARY = "write a checkpoint in another layout, or with an adapter merged into it"
EXAMPLES = """\
layouts:
  pt       as the -PT release, flat config.json; vLLM and SGLang read it
  native   as transformers' own ERNIE classes read it
  paddle   as the -Paddle release: transposed, fused; FastDeploy reads it

examples:
  ernie45 convert ERNIE-4.5-VL-28B-A3B-PT out --layout paddle
  ernie45 convert tiny out --layout native
  ernie45 convert tiny out --merge runs/lora   an adapter added to the weights

Tensors stream one at a time. DST appears only when it is complete.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a model folder in any of the layouts, or tiny")
    parser.add_argument("destination", metavar="DST", type=Path, help="the new folder; must not exist")
    layouts = ", ".join(LAYOUTS)
    parser.add_argument("--layout", type=one_of(*LAYOUTS), metavar="LAYOUT", help=f"one of {layouts} (with --merge: pt)")
    parser.add_argument("--merge", metavar="ADAPTER", type=Path, help="the folder of a LoRA adapter to add to the weights")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from ernie45.checkpoint.convert import convert

    if args.layout is None and args.merge is None:
        raise ConfigError(f"--layout must be given, one of {', '.join(LAYOUTS)}; or --merge ADAPTER")
    layout = args.layout or "pt"
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading the headers", total=None)

        def show(done: int, total: int, tensor: str) -> None:
            progress.update(task, completed=done, total=total, description=tensor[-_NAME_WIDTH:])

        if args.merge is None:
            convert(args.source, args.destination, layout, progress=show)
        else:
            from ernie45.checkpoint.merge import Target, merge

            merge(args.source, args.merge, Target(args.destination, layout), progress=show)
        progress.update(task, description="done")
    print(f"{args.destination}: layout {layout}, {'' if args.merge is None else f'with {args.merge} merged, '}complete")
