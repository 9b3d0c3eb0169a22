"""Numbers in texts, with fractions, percent signs and units, and the judges that compare them: numeric match and charts.

Know nothing about formulas (`mathematics`) or other judges.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded
from ernie45.train.rewards.reward import PerAnswer, Unscored, references
from ernie45.train.rewards.text import last_boxed

# Unit -> (what it measures, how much of that dimension's base unit it is).
UNITS: dict[str, tuple[str, float]] = {
    **{f"{prefix}m": ("length", factor) for prefix, factor in {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "c": 1e-2, "k": 1e3}.items()},
    **{f"{prefix}g": ("mass", factor) for prefix, factor in {"µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3}.items()},
    **{f"{prefix}s": ("time", factor) for prefix, factor in {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0}.items()},
    **{
        f"{prefix}{letter}": ("volume", factor) for prefix, factor in {"m": 1e-3, "c": 1e-2, "": 1.0}.items() for letter in "lL"
    },
    **{f"{prefix}J": ("energy", factor) for prefix, factor in {"": 1.0, "k": 1e3, "M": 1e6}.items()},
    **{f"{prefix}W": ("power", factor) for prefix, factor in {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}.items()},
    **{f"{prefix}N": ("force", factor) for prefix, factor in {"": 1.0, "k": 1e3}.items()},
    **{f"{prefix}Pa": ("pressure", factor) for prefix, factor in {"": 1.0, "k": 1e3, "M": 1e6}.items()},
    **{f"{prefix}V": ("voltage", factor) for prefix, factor in {"m": 1e-3, "": 1.0, "k": 1e3}.items()},
    **{f"{prefix}Hz": ("frequency", factor) for prefix, factor in {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}.items()},
    **dict.fromkeys(["m", "meter", "meters", "metre", "metres"], ("length", 1.0)),
    **dict.fromkeys(["min", "minute", "minutes"], ("time", 60.0)),
    **dict.fromkeys(["h", "hour", "hours"], ("time", 3600.0)),
    **dict.fromkeys(["second", "seconds"], ("time", 1.0)),
    "t": ("mass", 1e6),
    "m/s": ("speed", 1.0),
    "km/h": ("speed", 1 / 3.6),
}
_UNIT_WORDS = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[-+−]\s?)?
    (?: \\[dt]?frac\s*\{{\s*(?P<top>\d+)\s*\}}\s*\{{\s*(?P<bottom>\d+)\s*\}}
      | (?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)(?![\d.])
      | (?P<plain>{_PLAIN})(?:[eE](?P<power>[-+]?\d{{1,3}})|\s?(?:×|\*|\\times)\s?10\^\{{?(?P<ten>[-+]?\d{{1,3}})\}}?)?)
    (?:\s?\\?(?P<percent>%)|\s?(?P<unit>{_UNIT_WORDS})(?![\w/]))?""",
    flags=re.VERBOSE,
)


class Quantity(NamedTuple):
    """A number as it is written ("45%" is 45), whether a percent sign follows, and its unit, "" if none that is known."""

    value: float
    percent: bool = False
    unit: str = ""


def quantities(text: str) -> list[Quantity]:
    r"""All numbers of a text: 1,234.5  -3  2/3  1 1/2  \frac{2}{3}  1.5e-3  3 × 10^5  45%  5 km."""
    found = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None and math.isfinite(value):
            sign = -1 if match["sign"] and match["sign"][0] in "-−" else 1
            found.append(Quantity(sign * value, bool(match["percent"]), match["unit"] or ""))
    return found


def _value(match: re.Match[str]) -> float | None:
    # As floats: what is too large becomes infinite, and is left out.
    if match["plain"]:
        return float(f"{match['plain'].replace(',', '')}e{match['power'] or match['ten'] or 0}")
    top, bottom = float(match["top"] or match["over"]), float(match["bottom"] or match["under"])
    return float(match["whole"] or 0) + top / bottom if bottom else None


def agree(answer: Quantity, right: Quantity, relative: float, absolute: float) -> bool:
    """Whether |answer - right| <= max(absolute, relative * |right|), in the unit of the right one.

    An answer without a unit is taken to be in the right one's; a unit that measures something else is wrong. A percent sign on
    one side only: the other may be the percentage or the share.
    """
    value = answer.value
    if answer.unit and right.unit:
        (kind, factor), (wanted, base) = UNITS[answer.unit], UNITS[right.unit]
        if kind != wanted:
            return False
        value *= factor / base
    values = [value]
    if answer.percent != right.percent:
        values.append(value / 100 if answer.percent else value * 100)
    return any(abs(one - right.value) <= max(absolute, relative * abs(right.value)) * (1 + 1e-9) for one in values)


@dataclass(frozen=True, kw_only=True)
class Numeric(PerAnswer):
    r"""1 if the number that the answer gives agrees with a reference, else 0; see `agree` for units and percent signs.

    take: which number of the answer: last, first, or only (0 where there are several). What stands in `\boxed{}` goes first.
    tolerance: relative to the reference. absolute: of the difference itself.
    """

    take: str = "last"
    tolerance: float = 1e-6
    absolute: float = 0.0

    def __post_init__(self) -> None:
        if self.take not in ("last", "first", "only"):
            raise ConfigError(f"take ({self.take!r}) of reward numeric must be one of last, first, only")
        _check_tolerance("numeric", self.tolerance, self.absolute)

    def applies(self, item: Graded) -> bool:
        return item.reference is not None and _whole_number(item.reference) is not None

    def value(self, item: Graded) -> float:
        right = [_whole_number(reference) for reference in references(item)]
        if None in right:
            raise Unscored("bad_reference", f"answer ({item.reference!r}) must be one number")
        boxed = last_boxed(item.answer)
        found = quantities(item.answer if boxed is None else boxed)
        if not found or (self.take == "only" and len(found) > 1):
            return 0.0
        chosen = found[0 if self.take == "first" else -1]
        return float(any(agree(chosen, one, self.tolerance, self.absolute) for one in right if one is not None))


@dataclass(frozen=True, kw_only=True)
class Relaxed(PerAnswer):
    """Relaxed accuracy of questions on charts: a number may be off by the tolerance, any other text must be equal, case apart.

    The answer must be the number or the text alone. Source: Methani et al., PlotQA, 2020; Masry et al., ChartQA, 2022 (5 %).
    """

    tolerance: float = 0.05

    def __post_init__(self) -> None:
        _check_tolerance("relaxed", self.tolerance)

    def value(self, item: Graded) -> float:
        return float(any(equal_values(item.answer, reference, self.tolerance) for reference in references(item)))


@dataclass(frozen=True, kw_only=True)
class Table(PerAnswer):
    """F1 of the entries of a table or a list of keys and values: 2 * hits / (entries answered + entries of the reference).

    An entry is hit if its key is equal (case and white space apart) and its value right as in `Relaxed`. Forms that are read:
    a JSON object (also of objects, or a list of them by their first field), a Markdown table (key: row / column; of two columns
    without the latter), lines "key: value" or "key | value".
    """

    tolerance: float = 0.05

    def __post_init__(self) -> None:
        _check_tolerance("table", self.tolerance)

    def applies(self, item: Graded) -> bool:
        return item.reference is not None and bool(entries(item.reference))

    def value(self, item: Graded) -> float:
        answered, best = entries(item.answer), 0.0
        for reference in references(item):
            right = entries(reference)
            if not right:
                raise Unscored(
                    "bad_reference", "the reference has no entries: give a JSON object, a table or lines `key: value`"
                )
            hits = sum(key in answered and equal_values(answered[key], value, self.tolerance) for key, value in right.items())
            best = max(best, 2 * hits / (len(answered) + len(right)))
        return best


def equal_values(answer: str, right: str, tolerance: float) -> bool:
    """Numbers within the relative tolerance; texts equal, case and white space apart."""
    number = _whole_number(right)
    if number is not None:
        given = _whole_number(answer)
        return given is not None and agree(given, number, tolerance, 0.0)
    return _key(answer).rstrip(".") == _key(right).rstrip(".")


def entries(text: str) -> dict[str, str]:
    """Keys and values of a text in one of the forms that `Table` names; empty if it is in none of them."""
    text = re.sub(r"\A\s*```\w*\n(.*?)\n?```\s*\Z", r"\1", text, flags=re.DOTALL).strip()
    if text[:1] in ("{", "["):
        try:
            return _flat(json.loads(text))
        except (ValueError, RecursionError):
            return {}
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    if len(rows) > 1 and len(rows[0]) > 2:
        head = rows[0][1:]
        return {_key(f"{row[0]} / {name}"): cell for row in rows[1:] for name, cell in zip(head, row[1:], strict=False)}
    if rows:
        return {_key(row[0]): row[1] for row in rows if len(row) == 2}
    pairs = [line.partition(":") for line in text.splitlines() if ":" in line]
    return {_key(key.lstrip("-* ")): value.strip() for key, _, value in pairs if value.strip()}


def _flat(found: Any, path: str = "") -> dict[str, str]:
    if isinstance(found, list) and all(isinstance(one, Mapping) and one for one in found):
        found = {str(next(iter(one.values()))): dict(list(one.items())[1:]) for one in found}
    if not isinstance(found, Mapping):
        return {_key(path): str(found)} if path else {}
    return {
        key: value
        for name, inner in found.items()
        for key, value in _flat(inner, f"{path} / {name}" if path else str(name)).items()
    }


def _key(text: str) -> str:
    return " ".join(str(text).casefold().split())


def _whole_number(text: str) -> Quantity | None:
    """The number that a text is; only a currency before it and marks around it may stand there too."""
    bare = re.sub(r"^[\s$€£¥≈~]+|[\s.$]+$", "", text)
    match = _NUMBER.match(bare)
    if match is None or match.end() != len(bare):
        return None
    found = quantities(bare)
    return found[0] if len(found) == 1 else None


def _check_tolerance(name: str, *values: float) -> None:
    for value in values:
        if not 0 <= value < math.inf:
            raise ConfigError(f"tolerance ({value!r}) of reward {name} must be a number of at least 0")
