"""Settings of rewards: which judges, composed how, by which domain; the text form in which they are written, and its parser.

Knows nothing about what the judges do.

    exact                                one judge
    choice(case=true)                    with options; values with commas or brackets stand in quotes
    format * math                        product, from left to right; a 0 ends it, so a cheap judge in front is a gate
    0.9*math + 0.1*length(max=512)       weighted sum; `-` takes away
    first(boxes, numeric, exact)         the first that applies to the reference answer
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from ernie45.config.errors import ConfigError

NORMALISATIONS = ("none", "batch", "running")
COMPOSITIONS = ("sum", "product", "first")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|([A-Za-z_]\w*)|(.))", flags=re.DOTALL)
_VALUE = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,()"']*))""")


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """How answers are rewarded.

    spec             for every domain that `domains` does not name; "" if those are all there may be.
    domains          JSON object of domain -> spec, or the path of a file with one.
    normalise        none; batch: z-scores by domain over one batch; running: by moving averages of each domain.
    decay            of those averages, a batch.
    max_event_share  of the last 64 answers or more that may go without a score before training stops with an error.
    log_events       so many answers without a score are written to the run's reward-events.jsonl for each batch.
    """

    spec: str = "exact"
    domains: str = ""
    normalise: str = "none"
    decay: float = 0.95
    max_event_share: float = 0.9
    log_events: int = 4

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise ConfigError(f"rewards.normalise ({self.normalise!r}) must be one of {', '.join(NORMALISATIONS)}")
        if not 0 < self.decay < 1:
            raise ConfigError(f"rewards.decay ({self.decay}) must be above 0 and below 1")
        if not 0 < self.max_event_share <= 1:
            raise ConfigError(f"rewards.max_event_share ({self.max_event_share}) must be above 0 and at most 1; 1 never stops")
        if self.log_events < 0:
            raise ConfigError(f"rewards.log_events ({self.log_events}) must be at least 0")
        self.specs()

    def specs(self) -> dict[str, "RewardSpec"]:
        """Parsed specs by domain, the one for all others under ""."""
        texts = {"": self.spec} if self.spec.strip() else {}
        texts |= _read_domains(self.domains.strip()) if self.domains.strip() else {}
        if not texts:
            raise ConfigError("rewards.spec ('') must name a reward, as in exact, where rewards.domains is empty too")
        return {domain: parse_spec(text) for domain, text in texts.items()}


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One judge with its options, or a composition ("sum", "product", "first") of several. weights: of a sum's parts."""

    name: str
    options: tuple[tuple[str, str], ...] = ()
    parts: tuple["RewardSpec", ...] = ()
    weights: tuple[float, ...] = ()

    def __str__(self) -> str:
        """The text form; parsing it gives an equal spec."""
        if self.name == "sum":
            terms = [
                f"{'-' if weight < 0 else '+'} {abs(weight)!r}*{part}"
                for weight, part in zip(self.weights, self.parts, strict=True)
            ]
            return "(" + " ".join(terms).removeprefix("+ ") + ")"
        if self.name == "product":
            return "(" + " * ".join(map(str, self.parts)) + ")"
        inside = [str(part) for part in self.parts] + [f"{key}={_quoted(value)}" for key, value in self.options]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def parse_spec(text: str) -> RewardSpec:
    """The spec that a text stands for. ConfigError with the place where it cannot be read."""
    return _Parser(text).parse()


def _read_domains(text: str) -> dict[str, str]:
    """From a JSON text or the file that has it."""
    place = "rewards.domains"
    if not text.startswith("{"):
        place = f"rewards.domains ({text})"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{place} must be a JSON object or a readable file with one: {error}") from error
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise ConfigError(f"{place} must be a JSON object of domain -> spec: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f'{place} must be a JSON object of domain -> spec, as in {{"math": "math", "chart": "relaxed"}}')
    for domain, spec in found.items():
        if not domain or not isinstance(spec, str):
            raise ConfigError(f"{place}[{domain!r}] ({spec!r}) must be a domain's name and a spec in quotes")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]!r} stands there twice; keep one")
    return dict(pairs)


def _quoted(value: str) -> str:
    if re.fullmatch(r"[^,()\"'\s]+", value):
        return value
    return f'"{value}"' if '"' not in value else f"'{value}'"


class _Parser:
    """Recursive descent: sum of terms, term of factors, factor = name(...) or (sum)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def parse(self) -> RewardSpec:
        spec = self._sum()
        if self._peek():
            self._fail("an operator (+, -, *) or the end")
        return spec

    def _sum(self) -> RewardSpec:
        sign = -1.0 if self._accept("-") else 1.0
        parts, weights = [], []
        while True:
            weight, part = self._term()
            parts.append(part)
            weights.append(sign * weight)
            if self._accept("+"):
                sign = 1.0
            elif self._accept("-"):
                sign = -1.0
            else:
                break
        if weights == [1.0]:
            return parts[0]
        return RewardSpec(name="sum", parts=tuple(parts), weights=tuple(weights))

    def _term(self) -> tuple[float, RewardSpec]:
        weight, parts = 1.0, []
        while True:
            kind, token = self._token()
            if kind == "number":
                weight *= float(token)
                self._place = self._end
            else:
                parts.append(self._factor())
            if not self._accept("*"):
                break
        if not parts:
            self._fail("`*` and a reward behind the number")
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(f"reward spec ({self._text!r}): weight {weight} must be a number other than 0")
        return weight, parts[0] if len(parts) == 1 else RewardSpec(name="product", parts=tuple(parts))

    def _factor(self) -> RewardSpec:
        if self._accept("("):
            spec = self._sum()
            self._expect(")")
            return spec
        kind, name = self._token()
        if kind != "name":
            self._fail("the name of a reward")
        self._place = self._end
        if name in COMPOSITIONS and name != "first":
            self._fail("`+` and `*` for sums and products")
        parts, options = self._arguments() if self._accept("(") else ([], {})
        if bool(parts) != (name == "first") or (parts and options):
            self._fail("rewards inside of first(...), options (key=value) inside of any other")
        return RewardSpec(name=name, options=tuple(options.items()), parts=tuple(parts))

    def _arguments(self) -> tuple[list[RewardSpec], dict[str, str]]:
        """Up to the closing bracket."""
        parts: list[RewardSpec] = []
        options: dict[str, str] = {}
        while not self._accept(")"):
            key = re.compile(r"\s*([A-Za-z_]\w*)\s*=").match(self._text, self._place)
            if key:
                if key[1] in options:
                    raise ConfigError(f"reward spec ({self._text!r}): option {key[1]} stands there twice; keep one")
                value = _VALUE.match(self._text, key.end())
                assert value, self._text
                quoted = next((group for group in value.groups()[:2] if group is not None), None)
                options[key[1]] = value[3].strip() if quoted is None else quoted
                self._place = value.end()
            else:
                parts.append(self._sum())
            if self._peek() != ")":
                self._expect(",")
        return parts, options

    def _token(self) -> tuple[Literal["number", "name", "sign", "end"], str]:
        found = _TOKEN.match(self._text, self._place)
        if not found:
            return "end", ""
        self._end = found.end()
        for kind, value in zip(("number", "name", "sign"), found.groups(), strict=True):
            if value is not None:
                return ("end", "") if value.isspace() else (kind, value)  # type: ignore[return-value]
        return "end", ""

    def _peek(self) -> str:
        return self._token()[1]

    def _accept(self, sign: str) -> bool:
        if self._peek() != sign:
            return False
        self._place = self._end
        return True

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            self._fail(f"`{sign}`")

    def _fail(self, wanted: str) -> NoReturn:
        rest = self._text[self._place :].strip() or "its end"
        raise ConfigError(f"reward spec ({self._text!r}): {wanted} must stand before {rest!r}")


def read_options(name: str, defaults: dict[str, object], options: tuple[tuple[str, str], ...]) -> dict[str, object]:
    """Option texts as values of their defaults' types. ConfigError for an unknown option or a text of another type."""
    values: dict[str, object] = {}
    readers: dict[type, Callable[[str], object]] = {bool: lambda text: {"true": True, "false": False}[text.lower()]}
    for key, text in options:
        if key not in defaults:
            known = ", ".join(defaults) or "no options"
            raise ConfigError(f"option ({key!r}) of reward {name} is unknown; it has {known}")
        kind = type(defaults[key])
        try:
            values[key] = readers.get(kind, kind)(text)
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{key} ({text!r}) of reward {name} must be of type {kind.__name__}, as {defaults[key]!r}"
            ) from error
    return values
