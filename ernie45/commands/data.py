"""`ernie45 data`: look at training files before training on them, and at what a run has read of them.

Knows nothing about formats or tokens (`data.check`).
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ernie45.commands.arguments import one_of, whole_number
from ernie45.config.data import LOSS_ON, DataConfig
from ernie45.config.errors import ConfigError
from ernie45.config.model_json import config_from_json
from ernie45.config.presets import TINY_FOLDER

if TYPE_CHECKING:
    from ernie45.data.check import Report, Summary

SUMMARY = "check training files: bad lines, lengths, repetitions"
EXAMPLES = """\
examples:
  ernie45 data check my.jsonl                    bad lines and why, lengths
  ernie45 data check a.jsonl b.parquet c.tar     several files, any form
  ernie45 data check my.jsonl --model DIR        lengths in its tokens
  ernie45 data check my.jsonl --context 8192     what is longer is bad
  ernie45 data check my.jsonl --json             for scripts
  ernie45 data audit runs/pretrain-mine          was each record read once?

Exit code 2 if there are bad lines. What forms there are: docs/data.md.
"""
EXIT_BAD_RECORDS = 2
_BAR = 40
_FEW = 1000  # records that take no bar to wait for
_REPEATED_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", type=one_of("check", "audit"), metavar="ACTION", help="check files, or audit a run's reading")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="jsonl, json, csv, txt (also gz), parquet, tar")
    parser.add_argument("--model", default="tiny", metavar="MODEL", help="whose tokens: a model folder, or tiny (default)")
    parser.add_argument("--format", default="auto", metavar="NAME", help="form of all records (auto: each by its keys)")
    parser.add_argument("--context", type=whole_number(2), metavar="N", help="longest sequence (the model's context)")
    parser.add_argument(
        "--loss-on", type=one_of(*LOSS_ON), default="answer", metavar="PART", help=f"labels on {', '.join(LOSS_ON)} (answer)"
    )
    parser.add_argument("--decode", action="store_true", help="read pictures to their end, not only their headers")
    parser.add_argument("--allow-remote", action="store_true", help="fetch pictures over http(s)")
    parser.add_argument("--workers", type=whole_number(0), default=0, metavar="N", help="processes beside this one (0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a report")


def run(args: argparse.Namespace) -> int:
    return _audit(args) if args.action == "audit" else _check(args)


def _audit(args: argparse.Namespace) -> int:
    """The ledgers of runs, each in the folder of a run or in `run` inside it."""
    from ernie45.data.ledger import LEDGER, audit

    found = {str(path): audit(path if (path / LEDGER).is_file() else path / "run") for path in args.files}
    if args.json:
        print(json.dumps({path: vars(result) for path, result in found.items()}))
    for path, result in found.items() if not args.json else ():
        read = ", ".join(f"{count:,} records of {kind}" for kind, count in result.positions.items())
        print(f"{path}: {result.steps:,} steps, {read}; {result.repeated_steps:,} steps read again after restarts")
        for text in result.skipped:
            print(f"skipped: {text}")
        for text in result.problems:
            print(f"wrong: {text}")
        if not result.problems:
            print("every record was read exactly once" + (", but for those skipped" if result.skipped else ""))
    return EXIT_BAD_RECORDS if any(result.problems for result in found.values()) else 0


def _check(args: argparse.Namespace) -> int:
    from ernie45.data.check import Checker, check
    from ernie45.data.dataset import Dataset
    from ernie45.data.formats.forms import check_form
    from ernie45.data.template import RecordEncoder
    from ernie45.processor import Processor

    folder = TINY_FOLDER if args.model == "tiny" else Path(args.model)
    context = args.context or _context_of(folder, args.model)
    config = DataConfig(
        loss_on=args.loss_on, context=context, token_budget=context, allow_remote=args.allow_remote, workers=args.workers
    )
    dataset = Dataset(args.files, form=check_form(args.format, "--format"))
    checker = Checker(dataset, RecordEncoder(Processor.from_dir(folder), config), args.decode)
    with _progress(len(dataset)) as show:
        report = check(checker, args.workers, show)
    if args.json:
        print(json.dumps({**report.to_dict(), "context": context, "model": args.model}, ensure_ascii=False))
    else:
        print("\n".join(_lines(report, args.model, context)))
    return EXIT_BAD_RECORDS if report.bad else 0


def _context_of(folder: Path, model: str) -> int:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"--model ({model!r}) must be a folder with config.json, or tiny; check the path")
    return config_from_json(json.loads(path.read_text(encoding="utf-8"))).max_position_embeddings


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on the error output, where someone waits in front of it."""
    if total < _FEW or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("records", total=total)
        yield lambda done, total: bar.update(task, completed=done)


def _lines(report: "Report", model: str, context: int) -> Iterator[str]:
    for _, reason in report.bad:
        yield f"bad: {reason}"
    for place, first in report.repeated[:_REPEATED_SHOWN]:
        yield f"repeated: {place} is {first} again"
    if len(report.repeated) > _REPEATED_SHOWN:
        yield f"repeated: {len(report.repeated) - _REPEATED_SHOWN:,} more (--json lists them)"
    if report.bad or report.repeated:
        yield ""
    for path, count in report.records.items():
        yield f"{path}: {count:,} records"
    good = len(report.tokens_N)
    yield f"{good:,} good, {len(report.bad):,} bad, {len(report.repeated):,} repeated"
    if not good:
        return
    yield "forms: " + ", ".join(f"{name} {count:,}" for name, count in report.forms.items())
    yield (
        f"with thoughts {report.shares['thinking']:.1%}, with pictures {report.shares['pictures']:.1%} "
        f"({report.pictures:,} in all), several turns {report.shares['several_turns']:.1%}"
    )
    yield ""
    yield f"{'':<22}{'mean':>10}{'median':>10}{'95 %':>10}{'longest':>10}{'total':>15}"
    yield _row(f"tokens ({model})"[:22], report.tokens)
    if report.labels.total:
        yield _row("labels", report.labels)
    if report.patches.total:
        yield _row("patches, if pictures", report.patches)
    yield f"the longest takes {report.tokens.longest / context:.1%} of the context of {context:,}"
    yield ""
    yield from _histogram(report)


def _row(name: str, summary: "Summary") -> str:
    numbers = (summary.mean, summary.median, summary.percentile_95)
    return f"{name:<22}" + "".join(f"{number:>10,.1f}" for number in numbers) + f"{summary.longest:>10,}{summary.total:>15,}"


def _histogram(report: "Report") -> Iterator[str]:
    """Records by length, each class twice as long as the one before."""
    classes = [max(0, math.ceil(math.log2(tokens))) for tokens in report.tokens_N.tolist()]
    counts = {number: classes.count(number) for number in range(min(classes), max(classes) + 1)}
    most = max(counts.values())
    for number, count in counts.items():
        low, high = 2 ** (number - 1) + 1 if number else 1, 2**number
        bar = "#" * math.ceil(_BAR * count / most)
        yield f"{f'{low:,} to {high:,}':>20} {bar:<{_BAR}} {count:>10,}"
