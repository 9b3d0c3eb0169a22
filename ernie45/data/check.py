"""What is in files of records: which are bad and why, how long they are, how often they repeat.

Knows nothing about how it is shown; needs no torch.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.dataset import Dataset
from ernie45.data.loader import Loader
from ernie45.data.records import Document, Kind, Pair, Prompt, Record
from ernie45.data.sizes import Bad
from ernie45.data.template import RecordEncoder, Size

_CHUNK = 32


class Finding(NamedTuple):
    """One good record. size: of a pair the longer side's, of a prompt its own. digest: equal for equal records."""

    form: str
    kind: str
    size: Size
    turns: int
    pictures: int
    thinking: bool
    digest: bytes


@dataclass(frozen=True)
class Checker:
    """The function that worker processes run. decode: whether pictures are read to their end."""

    dataset: Dataset
    encoder: RecordEncoder
    decode: bool = False

    def __call__(self, indices: tuple[int, ...]) -> list[Finding | Bad]:
        return [self._one(index) for index in indices]

    def _one(self, index: int) -> Finding | Bad:
        try:
            form, record = self.dataset.find(index)
            parts = _parts(record)
            return Finding(
                form=form,
                kind=type(record).__name__.lower(),
                size=self._size(record),
                turns=sum(message.get("role") == "assistant" for message in getattr(record, "messages", ())),
                pictures=sum(part["type"] != "text" for part in parts),
                thinking=isinstance(record, Record) and self.encoder.is_thinking(record),
                digest=_digest(record),
            )
        except DataError as error:
            return Bad(index, str(error))

    def _size(self, record: Kind) -> Size:
        if isinstance(record, Pair):
            return max(self._size(record.side(chosen)) for chosen in (True, False))
        if isinstance(record, Prompt):
            inputs = self.encoder.prompt_input(record, thinking=True)
            return Size(len(inputs), len(inputs.patches), 0)
        if not self.decode:
            return self.encoder.measure(record)
        made = self.encoder.encode(record)
        return Size(len(made.inputs), len(made.inputs.patches), made.num_labels)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of numbers, one a record."""

    total: int
    mean: float
    median: float
    percentile_95: float
    longest: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Summary":
        """Zeros, if there are none."""
        if not len(values):
            return cls(total=0, mean=0.0, median=0.0, percentile_95=0.0, longest=0)
        return cls(
            total=int(values.sum()),
            mean=round(float(values.mean()), 1),
            median=float(np.median(values)),
            percentile_95=round(float(np.percentile(values, 95)), 1),
            longest=int(values.max()),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found. bad: (place, reason). repeated: (place, place of the first equal record).

    tokens_N: of every good record. shares: of the good records that have thoughts, pictures, several turns.
    """

    records: Mapping[str, int]
    bad: list[tuple[str, str]]
    repeated: list[tuple[str, str]]
    forms: Mapping[str, int]
    kinds: Mapping[str, int]
    tokens_N: np.ndarray
    tokens: Summary
    labels: Summary
    patches: Summary
    pictures: int
    shares: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the single lengths."""
        data = {name: value for name, value in vars(self).items() if name != "tokens_N"}
        for name in ("tokens", "labels", "patches"):
            data[name] = vars(data[name])
        data["bad"] = [{"record": place, "reason": reason} for place, reason in self.bad]
        data["repeated"] = [{"record": place, "first": first} for place, first in self.repeated]
        return data


def check(checker: Checker, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> Report:
    """Look at every record. progress: told how many of how many."""
    dataset, total = checker.dataset, len(checker.dataset)
    bad: list[tuple[str, str]] = []
    found: list[tuple[int, Finding]] = []
    tasks = [tuple(range(start, min(start + _CHUNK, total))) for start in range(0, total, _CHUNK)]
    with Loader(checker, workers, ahead=2 * workers) as loader:
        for task, results in zip(tasks, loader.map(tasks), strict=True):
            for index, result in zip(task, results, strict=True):
                if isinstance(result, Bad):
                    bad.append((dataset.origin(index), result.reason))
                else:
                    found.append((index, result))
            if progress is not None:
                progress(task[-1] + 1, total)
    return _report(dataset, bad, found)


def _report(dataset: Dataset, bad: list[tuple[str, str]], found: list[tuple[int, Finding]]) -> Report:
    sizes_N3 = np.array([finding.size for _, finding in found], dtype=np.int64).reshape(-1, 3)
    first: dict[bytes, int] = {}
    repeated = [
        (dataset.origin(index), dataset.origin(first[finding.digest]))
        for index, finding in found
        if first.setdefault(finding.digest, index) != index
    ]
    num = max(1, len(found))
    return Report(
        records=dataset.counts,
        bad=bad,
        repeated=repeated,
        forms=Counter(finding.form for _, finding in found),
        kinds=Counter(finding.kind for _, finding in found),
        tokens_N=sizes_N3[:, 0],
        tokens=Summary.of(sizes_N3[:, 0]),
        labels=Summary.of(sizes_N3[:, 2]),
        patches=Summary.of(sizes_N3[sizes_N3[:, 1] > 0, 1]),
        pictures=sum(finding.pictures for _, finding in found),
        shares={
            "thinking": sum(finding.thinking for _, finding in found) / num,
            "pictures": sum(finding.pictures > 0 for _, finding in found) / num,
            "several_turns": sum(finding.turns > 1 for _, finding in found) / num,
        },
    )


def _parts(record: Kind) -> list[Mapping[str, Any]]:
    if isinstance(record, Document):
        return list(record.parts)
    messages = record.prompt if isinstance(record, Pair) else record.messages
    return [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]


def _digest(record: Kind) -> bytes:
    """Of what is learnt, not of where it stands."""
    facts = {name: value for name, value in vars(record).items() if name not in ("source", "origin")}
    text = json.dumps([type(record).__name__, facts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _plain(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
