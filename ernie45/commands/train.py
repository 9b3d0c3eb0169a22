"""`ernie45 train`: run a stage of training by a recipe.

Knows nothing about what stages and recipes do.
"""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ernie45.commands.arguments import one_of, whole_number
from ernie45.config.errors import ConfigError

STAGES = ("pretrain", "sft", "dpo", "reward", "upo", "rlvr", "tiny")
SUMMARY = "pretrain, tune and align a model by a recipe"
EXAMPLES = """\
stages:
  pretrain   from nothing or on: towers, experts and decoder in stages
  sft        supervised answers, with and without thoughts; whole model or LoRA
  dpo        preference pairs: DPO and its family
  reward     a reward model from preference pairs
  rlvr       reinforcement learning from answers that can be checked
  upo        the same with a preference term
  tiny       every stage of the model that comes with the package

examples:
  ernie45 train --list                       recipes, and what they need
  ernie45 train sft --model tiny --dry-run   settings, forecast; starts nothing
  ernie45 train sft --model tiny --data my.jsonl --out runs/mine
  ernie45 train tiny                         the shipped model, in ten minutes
  ernie45 eval runs/tiny                     score it again
  ernie45 chat --model runs/mine             talk to it

Interrupted (Ctrl-C, SIGTERM, kill -9)? The same command goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", nargs="?", type=one_of(*STAGES), metavar="STAGE", help=f"one of {', '.join(STAGES)}")
    parser.add_argument("--list", action="store_true", help="show the recipes of every stage and what they need")
    parser.add_argument("--recipe", default="tiny", metavar="NAME", help="of the stage (tiny)")
    parser.add_argument("--model", metavar="MODEL", help="where to begin: a model folder, or tiny")
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE", help="to learn from; see docs/data.md")
    parser.add_argument("--eval-data", nargs="+", type=Path, default=[], metavar="FILE", help="held out, to be scored on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to make, or to go on with (runs/STAGE-RECIPE)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of data and weights (0)")
    parser.add_argument("--processes", type=whole_number(1), metavar="N", help="data-parallel, one thread each (1; tiny 2)")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and a forecast; start nothing")
    parser.add_argument("--fresh", action="store_true", help="begin anew, even if DIR has an unfinished run")
    parser.add_argument("--accept-changes", action="store_true", help="go on with DIR although its settings were others")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the recipe")


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list()
    if args.stage is None:
        raise ConfigError(f"STAGE must be given, one of {', '.join(STAGES)}; ernie45 train --list shows their recipes")
    overrides = dict(_setting(text) for text in args.set)
    out = args.out or Path("runs") / ("tiny" if args.stage == "tiny" else f"{args.stage}-{args.recipe}")
    if args.stage == "tiny":
        finished = _run_tiny(args, out, overrides)
    else:
        from ernie45.recipes import runner

        request = runner.Request(
            stage=args.stage,
            recipe=args.recipe,
            out=out,
            model=args.model,
            data=tuple(args.data),
            eval_data=tuple(args.eval_data),
            seed=args.seed,
            processes=args.processes or 1,
            fresh=args.fresh,
            accept_changes=args.accept_changes,
            overrides=overrides,
        )
        if args.dry_run:
            print(json.dumps(runner.describe(request), indent=2))
            return 0
        finished = runner.run(request)
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":  # one of torchrun's processes speaks for all
        return 0 if finished else 130
    if finished:
        if args.stage != "tiny":
            print(_next_words(args.stage, out))
        return 0
    print(f"stopped, with a checkpoint in {out}; the same command goes on from there", file=sys.stderr)
    return 130


def _next_words(stage: str, out: Path) -> str:
    """What a run has left in its folder, and what can be done with it."""
    if stage == "reward":
        return f'reward model in {out}; it judges answers as "model(path={out})" wherever a reward is named'
    if (out / "adapter_config.json").exists():
        return f"adapter in {out}; ernie45 serve MODEL --lora-modules mine={out}, or ernie45 convert MODEL DST --merge {out}"
    return f"model in {out}; talk to it: ernie45 chat --model {out}"


def _run_tiny(args: argparse.Namespace, out: Path, overrides: dict[str, str]) -> bool:
    """The shipped model's own recipe: all of its stages in one run."""
    given = {"--model": args.model, "--data": args.data, "--eval-data": args.eval_data, "--dry-run": args.dry_run}
    given["--accept-changes"] = args.accept_changes
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} must not be given with tiny, which makes model and data itself; name another STAGE")
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib (not installed) is needed for the learning curves; pip install 'ernie45[train]'")
    from ernie45.recipes import tiny

    return tiny.run(out, seed=args.seed, processes=args.processes or 2, fresh=args.fresh, overrides=overrides)


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from ernie45.recipes.runner import recipe_table

    table = Table(box=None, pad_edge=False)
    for column in ("stage", "recipe", "what it does", "data"):
        table.add_column(column, overflow="fold")
    for row in recipe_table():
        table.add_row(*row)
    Console().print(table)
    return 0


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--set ({text!r}) must be NAME=VALUE, for example optim.lr=0.01")
    return name.strip(), value.strip()
