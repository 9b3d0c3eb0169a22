"""The sizes of all records of a data set, measured once and kept in the run's folder; and the list of those that are bad.

Knows nothing about batches; needs no torch.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.dataset import Dataset
from ernie45.data.labelled import Labelled
from ernie45.data.loader import Loader
from ernie45.data.records import Document, Record
from ernie45.data.template import RecordEncoder, Size

Made = TypeVar("Made", Labelled, Size)
BAD_RECORDS = "bad-records.jsonl"
_CHUNK = 32


class Bad(NamedTuple):
    """A record that cannot be used, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Encoding:
    """A data set with what makes sequences of its records; the functions that worker processes run."""

    dataset: Dataset
    encoder: RecordEncoder

    def encode(self, indices: tuple[int, ...]) -> list[Labelled | Bad]:
        """Those records, or what is wrong with them."""
        return [self._one(index, self.encoder.encode) for index in indices]

    def measure(self, indices: tuple[int, ...]) -> list[Size | Bad]:
        """Their sizes, or what is wrong with them."""
        return [self._one(index, self.encoder.measure) for index in indices]

    def _one(self, index: int, act: Callable[[Record | Document], Made]) -> Made | Bad:
        try:
            record = self.dataset[index]
            assert isinstance(record, Record | Document), type(record)
            return act(record)
        except DataError as error:
            return Bad(index, str(error))

    @property
    def key(self) -> str:
        """Changes with everything a size depends on, but for the pictures' files."""
        processor, config = self.encoder.processor, self.encoder.config
        settings = (config.format, config.loss_on, config.thinking, config.template, config.max_tokens, config.allow_remote)
        facts = [self.dataset.fingerprint, settings, processor.template.source, asdict(processor.config)]
        facts += [processor.tokenizer.data, asdict(processor.tokens), processor.accepts_media]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class BadRecords:
    """Counts bad records, each once, and writes them down: one JSON object with place and reason a line.

    Several processes may share the folder, and runs that go on: what one has written the others do not write again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / BAD_RECORDS
        self._reasons: dict[int, str] = {}
        self._written: set[str] = set()
        self._read_to = 0

    def add(self, bad: Bad, origin: str) -> None:
        """One that was added before is left as it is."""
        if bad.index in self._reasons:
            return
        self._reasons[bad.index] = bad.reason
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._read_to)
            self._written |= {json.loads(line)["record"] for line in file if line.endswith(b"}\n")}
            if origin not in self._written:
                file.write(json.dumps({"record": origin, "reason": bad.reason}, ensure_ascii=False).encode() + b"\n")
            self._read_to = file.tell()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def first_reason(self) -> str:
        """Of the one that was found first; "" if there is none."""
        return next(iter(self._reasons.values()), "")


class SizeTable(NamedTuple):
    """sizes_N3: int64 [N, 3], tokens, patches and labels of each record; zeros for a bad one."""

    sizes_N3: np.ndarray
    bad: tuple[Bad, ...]

    @property
    def good(self) -> np.ndarray:
        """bool [N]: which records can be used."""
        return self.sizes_N3[:, 0] > 0


def measure_all(
    encoding: Encoding, workers: int = 0, folder: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> SizeTable:
    """Every record's size, from the folder if an earlier run has left it there. progress: told how many of how many.

    Processes that share the folder measure once: the others wait for the first.
    """
    if folder is None:
        return _measure(encoding, workers, progress)
    path = folder / "data" / f"sizes-{encoding.key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.with_suffix(".lock")):
        if path.is_file():
            with np.load(path) as kept:
                return SizeTable(kept["sizes"], tuple(Bad(*item) for item in json.loads(bytes(kept["bad"]))))
        table = _measure(encoding, workers, progress)
        temporary = path.with_name(f".{path.name}")
        with open(temporary, "wb") as file:
            np.savez(file, sizes=table.sizes_N3, bad=np.frombuffer(json.dumps(table.bad).encode(), dtype=np.uint8))
        os.replace(temporary, path)
        return table


def _measure(encoding: Encoding, workers: int, progress: Callable[[int, int], None] | None) -> SizeTable:
    total = len(encoding.dataset)
    sizes_N3 = np.zeros((total, 3), dtype=np.int64)
    bad: list[Bad] = []
    tasks = [tuple(range(start, min(start + _CHUNK, total))) for start in range(0, total, _CHUNK)]
    with Loader(encoding.measure, workers, ahead=2 * workers) as loader:
        for task, found in zip(tasks, loader.map(tasks), strict=True):
            for index, size in zip(task, found, strict=True):
                if isinstance(size, Bad):
                    bad.append(size)
                else:
                    sizes_N3[index] = size
            if progress is not None:
                progress(task[-1] + 1, total)
    return SizeTable(sizes_N3, tuple(bad))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A lock file: one process at a time; the lock goes with a process that dies."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
