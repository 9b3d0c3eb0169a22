"""`ernie45 eval`: the held-out scores of a model.

Knows nothing about the tasks (`evals`).
"""

import argparse
import json

from ernie45.commands.arguments import whole_number

SUMMARY = "score a model on held-out pictures and questions"
EXAMPLES = """\
examples:
  ernie45 eval tiny                 a table
  ernie45 eval runs/tiny --json     a JSON object, for scripts
  ernie45 eval tiny --num 50        fewer questions a task: quicker, coarser

Answers are greedy. No digit in the pictures was ever trained on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or tiny")
    parser.add_argument("--num", type=whole_number(1), default=300, metavar="N", help="questions a task and answer form (300)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the questions (0)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ernie45.evals.tiny import TITLES, evaluate

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=None)
        report = evaluate(
            args.model,
            num_prompts=args.num,
            seed=args.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.json:
        print(json.dumps(report.to_dict()))
    elif args.markdown:
        print("| right answers, percent | thinking | direct |\n|---|---:|---:|")
        for skill, score in report.skills.items():
            print(f"| {TITLES[skill]} | {100 * score.thinking:.1f} | {100 * score.direct:.1f} |")
    else:
        report.print()
