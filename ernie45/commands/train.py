"""`ernie45 train`: run a training recipe by name.

Knows nothing about what a recipe does.
"""

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ernie45.commands.arguments import one_of, whole_number
from ernie45.config.errors import ConfigError

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
    parser.add_argument("--out", type=Path, metavar="DIR", help="the model folder to make, or to go on with (runs/RECIPE)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of data and weights (0)")
    parser.add_argument("--processes", type=whole_number(1), default=2, metavar="N", help="data-parallel, one thread each (2)")
    parser.add_argument("--fresh", action="store_true", help="begin anew, even if DIR has an unfinished run")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the recipe")


def run(args: argparse.Namespace) -> int:
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib (not installed) is needed for the learning curves; pip install 'ernie45[train]'")
    overrides = dict(_setting(text) for text in args.set)
    recipe = import_module(RECIPES[args.recipe])
    out = args.out or Path("runs") / args.recipe
    finished = recipe.run(out, seed=args.seed, processes=args.processes, fresh=args.fresh, overrides=overrides)
    if finished:
        return 0
    print(f"stopped, with a checkpoint in {out}; the same command goes on from there", file=sys.stderr)
    return 130


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--set ({text!r}) must be NAME=VALUE, for example optim.lr=0.01")
    return name.strip(), value.strip()
