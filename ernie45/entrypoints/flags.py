"""What a flag of the server is, and how flags become a parser, a `ServerConfig` and notes about those without effect.

Knows nothing about which flags there are (`flag_table`) or about serving.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.server import ServerConfig
from ernie45.config.speculation import SpeculationConfig

# Not used by any flag: told apart from every value that one can have.
_ABSENT = argparse.SUPPRESS


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the command line. It does exactly one of the following things.

    target   its value goes to this field of ServerConfig, or of EngineConfig as `engine.FIELD`.
    only     values that say what this server does anyway; any other is an error that says `rule`.
    note     it has no effect, which is said once when it is given, with this reason.
    instead  it is an error, which says what to use instead.

    parse       makes the value; a switch has none.   switch: no value.   both: also as --no-NAME.
    many        may be given several times, and with several values.
    fastdeploy  default under FastDeploy's command, where it differs from that of the field.
    """

    name: str
    group: str
    help: str = ""
    metavar: str | None = None
    parse: Callable[[str], Any] | None = str
    target: str | None = None
    only: tuple[str, ...] = ()
    rule: str = ""
    note: str = ""
    instead: str = ""
    both: bool = False
    many: bool = False
    fastdeploy: Any = None

    @property
    def field(self) -> str:
        """Its name in the parsed arguments."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def is_switch(self) -> bool:
        return self.parse is None

    @property
    def works(self) -> bool:
        return self.target is not None

    @property
    def text(self) -> str:
        """The line of --help and of the documentation."""
        if self.only:
            return f"only {', '.join(self.only)}: {self.rule}"
        if self.note:
            return f"no effect: {self.note}"
        return f"refused: {self.instead}" if self.instead else self.help

    def default(self, fastdeploy: bool = False) -> str | float | None:
        """What to show as its default; None: nothing, as there is none or its help says it."""
        default = _DEFAULTS.get(self.target or "")
        if fastdeploy and self.fastdeploy is not None:
            default = self.fastdeploy
        plain = isinstance(default, str | int | float) and not isinstance(default, bool)
        return default if plain and self.parse is not gibibytes else None


# Of every field that a flag may go to, by its target.
_DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in fields(ServerConfig)},
    **{f"engine.{field.name}": field.default for field in fields(EngineConfig)},
}


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag], fastdeploy: bool = False) -> None:
    """Add the flags, by group. fastdeploy: show its defaults, and also what is there only for those who come from it."""
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        text = flag.text.replace("%", "%%")
        default = flag.default(fastdeploy)
        if default is not None:
            text += f" (default: {default})"
        options: dict[str, Any] = {"default": _ABSENT, "help": text if flag.works or fastdeploy else argparse.SUPPRESS}
        if flag.both:
            options["action"] = argparse.BooleanOptionalAction
        elif flag.is_switch:
            options["action"] = "store_true"
        else:
            options |= {"type": flag.parse, "metavar": flag.metavar or "VALUE", "dest": flag.field}
            if flag.many:
                options |= {"action": "extend", "nargs": "+"}
        groups[flag.group].add_argument(flag.name, **options)


def notes(args: argparse.Namespace, flags: Iterable[Flag]) -> list[str]:
    """One line for each flag that was given and has no effect."""
    return [f"{flag.name} has no effect: {flag.note}" for flag in flags if flag.note and hasattr(args, flag.field)]


def to_config(args: argparse.Namespace, flags: Iterable[Flag], fastdeploy: bool = False) -> ServerConfig:
    """The config that the flags say, `args.model` being the model. ConfigError for a flag or value that this server has not."""
    server: dict[str, Any] = {"model": args.model}
    engine: dict[str, Any] = {}
    for flag in flags:
        given = hasattr(args, flag.field)
        value = getattr(args, flag.field, flag.fastdeploy if fastdeploy else None)
        if given and flag.instead:
            raise ConfigError(f"{flag.name} is not for this server; {flag.instead}")
        if given and flag.only and str(value) not in flag.only:
            raise ConfigError(f"{flag.name} ({value}) must be {' or '.join(flag.only)}: {flag.rule}")
        if flag.target is None or value is None:
            continue
        into, name = (engine, flag.target[7:]) if flag.target.startswith("engine.") else (server, flag.target)
        into[name] = tuple(value) if flag.many else value
    keys = _api_keys(server.pop("api_keys", ()), server.pop("api_key_file", None))
    return ServerConfig(**server, api_keys=keys, engine=EngineConfig(**engine))


def _api_keys(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    from ernie45.server.auth import read_keys  # brings a web framework, which --help does without

    return read_keys(given, file, os.environ)


def whole(text: str) -> int:
    """A whole number; its range is checked where it is used."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"({text!r}) must be a whole number, for example 8") from None


def port(text: str) -> int:
    """A port; 0 takes a free one."""
    number = whole(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"({number}) must be a whole number from 0 to 65535")
    return number


def real(text: str) -> float:
    """A number; its range is checked where it is used."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"({text!r}) must be a number, for example 10") from None


def seconds(text: str) -> float | None:
    """A time; 0 for no limit."""
    return real(text) or None


def gibibytes(text: str) -> int:
    """A size in GiB, as bytes."""
    size = real(text)
    if not 0 <= size < 2**30:
        raise argparse.ArgumentTypeError(f"({text}) must be a number of GiB of at least 0")
    return int(size * 2**30)


def or_default(parse: Callable[[str], Any], unset: float) -> Callable[[str], Any]:
    """A value of which FastDeploy uses one (-1, or 0) to say that the server shall choose."""

    def check(text: str) -> Any:
        value = parse(text)
        return None if value == unset else value

    return check


def json_object(text: str, example: str = '{"image": 10}') -> Mapping[str, Any]:
    """A JSON object, e.g. {"image": 10}."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"({text!r}) must be a JSON object in quotes, for example '{example}'")
    return value


_SPECULATION_EXAMPLE = '{"method": "ngram", "num_speculative_tokens": 4}'
# FastDeploy's and vLLM's keys, and ours.
_SPECULATION_KEYS = {
    "method": "method",
    "num_speculative_tokens": "num_draft_tokens",
    "prompt_lookup_min": "min_ngram",
    "prompt_lookup_max": "max_ngram",
}


def speculation(text: str) -> SpeculationConfig:
    """E.g. {"method": "ngram", "num_speculative_tokens": 4}."""
    given = json_object(text, _SPECULATION_EXAMPLE)
    own = {field.name for field in fields(SpeculationConfig)}
    for key in given:
        if key not in _SPECULATION_KEYS and key not in own:
            raise argparse.ArgumentTypeError(f"has the unknown key {key!r}; known are {', '.join(_SPECULATION_KEYS)}")
    if "method" not in given:
        raise argparse.ArgumentTypeError(f"({text!r}) must name a method, for example '{_SPECULATION_EXAMPLE}'")
    try:
        return SpeculationConfig(**{_SPECULATION_KEYS.get(key, key): value for key, value in given.items()})
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def lora_module(text: str) -> tuple[str, str]:
    """NAME=FOLDER, or vLLM's {"name": …, "path": …}."""
    if text.startswith("{"):
        value = json_object(text)
        name, folder = str(value.get("name", "")), str(value.get("path", ""))
    else:
        name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"({text!r}) must be NAME=FOLDER, for example support=adapters/support")
    return name, folder
