"""`ernie45 train`: run a training recipe by name.

Knows nothing about what a recipe does.
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import one_of, whole_number

RECIPES = {"tiny": "ernie45.recipes.tiny"}
SUMMARY = "train a model by a recipe: `tiny` takes ten minutes"
EXAMPLES = """\
examples:
  ernie45 train tiny                    into runs/tiny; ends with its scores
  ernie45 train tiny --out DIR          into another folder
  ernie45 eval runs/tiny                score it again
  ernie45 chat --model runs/tiny        talk to it

Interrupted (Ctrl-C, kill -9)? The same command goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=one_of(*RECIPES), metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write and resume (runs/RECIPE)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the data and the weights (0)")


def run(args: argparse.Namespace) -> None:
    from importlib import import_module

    import_module(RECIPES[args.recipe]).run(args.out or Path("runs") / args.recipe, seed=args.seed)
