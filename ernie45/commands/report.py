"""`ernie45 report`: one HTML page about one or several training runs.

Knows nothing about what is on the page.
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import whole_number
from ernie45.config.errors import ConfigError

SUMMARY = "make one HTML page of training runs: curves, experts, speed, answers"
EXAMPLES = """\
examples:
  ernie45 report runs/pre                        writes report.html
  ernie45 report runs/a runs/b --out compare.html
  ernie45 report runs/pre --samples 0            no answers: quicker

The page is one file without anything to fetch. A run may still be going on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the --out folder of a run; several: compared")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="page to write (report.html)")
    parser.add_argument(
        "--samples", type=whole_number(0), default=1, metavar="N", help="held-out questions of each kind to answer (1)"
    )
    parser.add_argument("--direct", action="store_true", help="answers without thoughts")


def run(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out ({args.out}) must be a file that ends in .html; name one")
    from ernie45.recipes.report import read_runs
    from ernie45.recipes.report_page import page
    from ernie45.recipes.report_samples import sampled_answers
    from ernie45.train.storage import write_atomically

    runs = read_runs(args.runs)
    text = page(runs, sampled_answers(runs, args.samples, thinking=not args.direct))
    write_atomically(args.out, text.encode())
    print(f"{args.out}: {len(runs)} run{'s' * (len(runs) > 1)}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
