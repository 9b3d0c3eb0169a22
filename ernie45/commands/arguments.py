"""Argument types whose errors name the value, the rule and a way out, and options that several commands share.

Knows nothing about what the values are for.
"""

import argparse
from collections.abc import Callable
from difflib import get_close_matches

from ernie45.config.engine import EngineConfig


def one_of(*allowed: str) -> Callable[[str], str]:
    """A type for `add_argument`: one of these words."""

    def check(value: str) -> str:
        if value in allowed:
            return value
        near = get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(f"({value!r}) must be one of {', '.join(allowed)}{hint}")

    return check


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for `add_argument`: an integer in [low, high]."""

    def check(value: str) -> int:
        rule = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        try:
            number = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"({value!r}) must be {rule}, for example {low}") from None
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"({value}) must be {rule}")
        return number

    return check


def real_number(low: float, high: float) -> Callable[[str], float]:
    """A type for `add_argument`: a number in [low, high]."""

    def check(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"({value!r}) must be a number from {low:g} to {high:g}") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"({value}) must be a number from {low:g} to {high:g}")
        return number

    return check


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, for commands that talk."""
    parser.add_argument("--model", default="tiny", metavar="MODEL", help="a model folder, or tiny (default)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Where and in which type the model runs."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="a torch device: cpu (default), cuda, cuda:1")
    parser.add_argument(
        "--dtype", type=one_of("float32", "bfloat16"), metavar="TYPE", help="float32 or bfloat16; default: as in the checkpoint"
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """From the options of `add_engine`."""
    return EngineConfig(device=args.device, dtype=args.dtype)


def add_media(parser: argparse.ArgumentParser) -> None:
    """--image, --video and the thinking switch."""
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture (path or URL); repeat for more, in order"
    )
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video (path or URL); may be repeated")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reason before answering (default), or answer at once",
    )


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """How tokens are chosen and how many there may be."""
    parser.add_argument(
        "--max-tokens", type=whole_number(1), default=max_tokens, metavar="N", help=f"stop after N new tokens ({max_tokens})"
    )
    parser.add_argument(
        "--temperature", type=real_number(0, 2), default=0.0, metavar="T", help="0 takes the likeliest token (default)"
    )
    parser.add_argument(
        "--top-p", type=real_number(0, 1), default=1.0, metavar="P", help="sample within this probability mass (1)"
    )
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="repeat the same sampling")
