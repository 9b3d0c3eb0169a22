"""`ernie45 eval`: scores of a model or a server.

Knows nothing about tasks, judges or intervals (`evals`, `train.rewards`).
"""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ernie45.commands.arguments import add_engine, engine_config, one_of, real_number, whole_number
from ernie45.config.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from ernie45.evals.answerers import Answerer
    from ernie45.evals.run import Result, Settings, Task

SUMMARY = "score a model or a server"
EXAMPLES = """\
examples:
  ernie45 eval tiny                      a table of the built-in tasks
  ernie45 eval --list                    which these are
  ernie45 eval runs/sft --against tiny   differences, on the same questions
  ernie45 eval tiny --tasks sum3,sum4 --temperature 1 --samples 8 --pass-at 1,8
  ernie45 eval --server http://localhost:8180/v1 --tasks arithmetic
  ernie45 eval DIR --data my.jsonl --reward math   one's own questions
  ernie45 eval DIR --lm-eval gsm8k --lm-eval-chat  if lm-eval is installed

Built-in tasks are held out: no digit in their pictures was ever trained on.
Scores are means over questions with 95 % intervals; with --against,
differences by paired bootstrap. A prompt file has messages (or question) and
answer in each line; rewards are those of training, for example exact,
numeric, "first(choice, numeric, exact)", "code(mode=share)".
"""
_OWN_TOKENS, _BUILT_IN_TOKENS = 2048, 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model folder, or tiny")
    who = parser.add_argument_group("who answers")
    who.add_argument("--server", metavar="URL", help="instead of MODEL: an OpenAI-compatible address, up to /v1")
    who.add_argument("--server-model", default="", metavar="NAME", help="its name there (the only one there)")
    who.add_argument("--key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the key")
    who.add_argument("--against", metavar="MODEL", help="another model folder, or tiny, on the same questions")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--list", action="store_true", help="list the built-in tasks and end")
    what.add_argument("--tasks", default="", metavar="NAMES", help="of the built-in ones, by comma (all)")
    what.add_argument("--num", type=whole_number(1), metavar="N", help="questions a task (300; of a file: all)")
    what.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of questions and draws (0)")
    what.add_argument("--data", action="append", type=Path, metavar="FILE", help="prompts with answers, instead of tasks")
    what.add_argument("--reward", metavar="SPEC", help="what judges the answers to --data (exact)")
    what.add_argument("--domains", default="", metavar="JSON", help="rewards by domain: a JSON object or file")
    what.add_argument("--lm-eval", metavar="TASKS", help="tasks of lm-eval by comma, through our server")
    what.add_argument("--lm-eval-chat", action="store_true", help="as conversations, for tasks that let the model write")
    what.add_argument("--lm-eval-options", default="", metavar="TEXT", help='further options of lm-eval, as "--limit 100"')
    how = parser.add_argument_group("how it answers")
    how.add_argument("--thinking", type=one_of("both", "on", "off"), default="both", metavar="WHEN", help="on, off or both")
    how.add_argument("--temperature", type=real_number(0, 100), default=0.0, metavar="T", help="0 is greedy (0)")
    how.add_argument("--samples", type=whole_number(1, 1000), default=1, metavar="N", help="answers a question (1)")
    how.add_argument("--pass-at", default="", metavar="KS", help="also pass@k, for these k by comma")
    how.add_argument("--max-tokens", type=whole_number(1), metavar="N", help="of an answer (96; with --data 2048)")
    add_engine(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    shown.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write every answer with its score, as JSON lines")


def run(args: argparse.Namespace) -> None:
    if args.list:
        _print_list(args)
        return
    _check(args)
    if args.lm_eval:
        _run_lm_eval(args)
        return
    from ernie45.evals.run import run as run_tasks

    settings = _settings(args)
    with ExitStack() as stack:
        answers = _open_answers(args.answers, stack)
        tasks = _tasks(args, stack)
        results: list[Result] = []
        for answerer in _answerers(args):
            with _bar() as progress:
                try:
                    results.append(run_tasks(answerer, tasks, settings, progress))
                finally:
                    answerer.close()
            answers.writelines(
                json.dumps({"model": results[-1].model, **row}, ensure_ascii=False) + "\n" for row in results[-1].answers
            )
            _check_asked(args, results[-1])
    _show(args, tasks, results)


def _open_answers(path: Path | None, stack: ExitStack) -> TextIO:
    """The file of --answers, opened before anything is asked; without one, a place where lines vanish."""
    try:
        return stack.enter_context(open(path or os.devnull, "w", encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise StorageError(f"--answers ({path}) cannot be written: {error.strerror}; choose another place") from error


def _check(args: argparse.Namespace) -> None:
    """What goes together."""
    if bool(args.model) == bool(args.server) and not (args.lm_eval and args.server):
        raise ConfigError("MODEL or --server must be given, one of them: ernie45 eval tiny")
    for option, needs in (("reward", "data"), ("domains", "data"), ("lm_eval_options", "lm_eval"), ("server_model", "server")):
        if getattr(args, option) and not getattr(args, needs):
            raise ConfigError(
                f"--{option.replace('_', '-')} must go with --{needs.replace('_', '-')}; add it, or leave this out"
            )
    if args.data and args.tasks:
        raise ConfigError("--tasks and --data must not go together: the first names built-in tasks; leave one out")
    if args.lm_eval and (args.data or args.tasks or args.against):
        raise ConfigError("--lm-eval must stand without --tasks, --data and --against; run it by itself")
    from ernie45.checkpoint import resolve_model

    for model in filter(None, (args.model, args.against)):
        resolve_model(model)  # a folder that is not there costs no questions made in vain


def _settings(args: argparse.Namespace) -> "Settings":
    from ernie45.evals.answerers import Sampling
    from ernie45.evals.run import Settings

    forms = {"both": ("thinking", "direct"), "on": ("thinking",), "off": ("direct",)}[args.thinking]
    try:
        ks = tuple(int(word) for word in args.pass_at.split(",") if word.strip())
    except ValueError as error:
        raise ConfigError(f"--pass-at ({args.pass_at!r}) must be whole numbers by comma, as in 1,8") from error
    max_tokens = args.max_tokens or (_OWN_TOKENS if args.data else _BUILT_IN_TOKENS)
    sampling = Sampling(temperature=args.temperature, samples=args.samples, max_tokens=max_tokens, seed=args.seed)
    return Settings(forms=forms, sampling=sampling, pass_at=ks)


def _tasks(args: argparse.Namespace, stack: ExitStack) -> "list[Task]":
    from ernie45.evals.tasks import builtin_tasks, task_from_files

    if not args.data:
        return builtin_tasks([name.strip() for name in args.tasks.split(",") if name.strip()], args.num or 300, args.seed)
    from ernie45.config.rewards import RewardsConfig
    from ernie45.train.rewards.system import RewardSystem

    default = "" if args.domains else "exact"
    config = RewardsConfig(spec=default if args.reward is None else args.reward, domains=args.domains)
    rewards = stack.enter_context(RewardSystem(config))
    task = task_from_files(args.data, args.num, rewards.grade)
    for domain in sorted({question.domain for question in task.questions}):
        rewards.check_domain(domain)
    return [task]


def _answerers(args: argparse.Namespace) -> "Iterator[Answerer]":
    """One after the other: the second model is loaded when the first one is gone."""
    from ernie45.data.chat_api import ChatApi
    from ernie45.evals.answerers import EngineAnswerer, ServerAnswerer

    engine = replace(engine_config(args), max_num_seqs=64, max_num_batched_tokens=4096)
    if args.server:
        yield ServerAnswerer(ChatApi(args.server, args.server_model, args.key_env, timeout=600.0))
    else:
        yield EngineAnswerer.load(args.model, engine)
    if args.against:
        yield EngineAnswerer.load(args.against, engine)


def _check_asked(args: argparse.Namespace, result: "Result") -> None:
    """A task that was asked for by name, or all there is, must not be skipped in silence; and something must have a score."""
    if result.skipped and (args.tasks or args.data or not result.scores):
        name, reason = next(iter(result.skipped.items()))
        raise ConfigError(f"task ({name!r}) cannot be asked: {reason}; choose other tasks, or a model with vision")
    if all(row["value"] is None for row in result.answers):
        row = result.answers[0]
        raise DataError(f"no answer of {result.model} has a score; the first: {row['event']}: {row['detail']}")


def _show(args: argparse.Namespace, tasks: "list[Task]", results: "list[Result]") -> None:
    from ernie45.evals import shown

    titles = {task.name: task.title for task in tasks}
    result, other = results[0], results[1] if len(results) > 1 else None
    if args.json:
        print(json.dumps(shown.to_dict(result, titles, other)))
    elif args.markdown:
        print(shown.markdown(result, titles, other))
    else:
        shown.print_table(result, titles, other)


def _run_lm_eval(args: argparse.Namespace) -> None:
    from ernie45.evals.lm_eval import LmEval, run_lm_eval

    wanted = LmEval(
        tasks=args.lm_eval,
        chat=args.lm_eval_chat,
        options=tuple(shlex.split(args.lm_eval_options)),
        serve=("--device", args.device, *(("--dtype", args.dtype) if args.dtype else ())),
    )
    served = ""
    if args.server:
        from ernie45.data.chat_api import ChatApi

        api = ChatApi(args.server, args.server_model, args.key_env)
        try:
            served = api.check().model
        finally:
            api.close()
    found = run_lm_eval(args.model or "", wanted, args.server or "", served)
    if args.json:
        print(json.dumps(found))
        return
    rows = [(task, metric, value) for task, metrics in found["tasks"].items() for metric, value in metrics.items()]
    if args.markdown:
        print("| task | metric | value |\n|---|---|---:|")
        for task, metric, value in rows:
            print(f"| {task} | {metric} | {value:.4f} |")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric", "value", title=f"{found['model']}: lm-eval")
    for task, metric, value in rows:
        table.add_row(task, metric, f"{value:.4f}")
    Console().print(table)


def _print_list(args: argparse.Namespace) -> None:
    from ernie45.evals.tasks import builtin_titles

    titles = builtin_titles()
    if args.json:
        print(json.dumps(titles))
        return
    for name, title in titles.items():
        print(f"{name:<{max(map(len, titles))}}  {title}")


@contextmanager
def _bar() -> Any:
    """A function that is told (answers so far, in all); a bar on stderr as long as it lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=None)
        progress: Callable[[int, int], None] = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        yield progress
