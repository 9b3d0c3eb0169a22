"""The `ernie45` command: builds the parser, calls one function of `commands`, turns errors into one line and an exit code.

Knows nothing about models; imports no torch, so that --help is instant.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from ernie45 import __version__
from ernie45.commands import chat, convert, data, demo, evaluate, generate, info, report, run_batch, sample, serve, train
from ernie45.config.errors import Ernie45Error
from ernie45.entrypoints.vllm_flags import VLLM_INSTEAD

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

DESCRIPTION = """\
ERNIE 4.5 in PyTorch: talk to a model, look into it, convert, train, serve it.
MODEL is a folder, or `tiny` for the trained model that comes with the package."""

EXAMPLES = """\
start here:
  ernie45 demo                       a picture, an answer, then the chat page
  ernie45 chat "What is 47+12?"      one answer; without a prompt, a talk
  ernie45 info 28b-a3b               parameters and memory of the released model
  ernie45 COMMAND --help             options and examples of one command
"""

COMMANDS = {
    "demo": demo,
    "chat": chat,
    "generate": generate,
    "run-batch": run_batch,
    "serve": serve,
    "info": info,
    "convert": convert,
    "data": data,
    "sample": sample,
    "train": train,
    "report": report,
    "eval": evaluate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, 2 for what the user can mend (one line on stderr), 130 after Ctrl-C."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.run(args) or 0
    except Ernie45Error as error:
        print(f"ernie45: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left. Python flushes stdout once more at exit: give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of one command; SystemExit(2) after one line on stderr if they cannot be used."""
    parser, subparsers = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(subparsers[args.command], args.command, unknown[0])
    return args


def build_parser() -> tuple["Parser", dict[str, "Parser"]]:
    """The whole parser and, by name, that of each command."""
    parser = Parser(prog="ernie45", description=DESCRIPTION, epilog=EXAMPLES, **_SHARED)
    parser.add_argument("--version", action="version", version=f"ernie45 {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    subparsers = {}
    for name, module in COMMANDS.items():
        summary = module.SUMMARY
        subparser = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=module.EXAMPLES, **_SHARED
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
        subparsers[name] = subparser
    return parser, subparsers


class Parser(argparse.ArgumentParser):
    """Argparse whose errors are one line with the field, its value, the rule and a way out."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"^argument COMMAND: invalid choice: '([^']*)'", message)
        if wrong:
            message = f"command ({wrong[1]!r}) must be one of {', '.join(COMMANDS)}; {_suggest(wrong[1], list(COMMANDS))}"
        elif message.endswith("required: COMMAND"):
            message = f"a command is needed, one of {', '.join(COMMANDS)}; start with `ernie45 demo`, or see `ernie45 --help`"
        else:
            message = re.sub(r"^argument (\S+?)(/\S+)?:? ", r"\1 ", message)
            message += "" if "must be" in message else f"; see `{self.prog} --help`"
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {message}\n")


_SHARED = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def _refuse_unknown(parser: Parser, command: str, argument: str) -> NoReturn:
    option = argument.split("=")[0]
    known = sorted(parser._option_string_actions) if option.startswith("-") else []
    if command in ("serve", "run-batch") and option in VLLM_INSTEAD:
        parser.exit(EXIT_USER_ERROR, f"ernie45 {command}: error: {option} is not for this server; {VLLM_INSTEAD[option]}\n")
    rule = f"option ({option}) is not one of `ernie45 {command}`" if known else f"argument ({argument!r}) is one too many"
    hint = (
        _suggest(option, known, parser.prog)
        if known
        else f"put it in quotes if it belongs to the text; see `ernie45 {command} --help`"
    )
    parser.exit(EXIT_USER_ERROR, f"ernie45 {command}: error: {rule}; {hint}\n")


def _suggest(value: str, known: list[str], program: str = "ernie45") -> str:
    near = get_close_matches(value, known, n=1)
    return f"did you mean {near[0]}?" if near else f"see `{program} --help`"


if __name__ == "__main__":
    sys.exit(main())
