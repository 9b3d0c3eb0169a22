"""What a run has read of the global order, line by line, and the proof that nothing was read twice or lost.

Knows nothing about records: positions alone.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie45.config.errors import DataError, StorageError
from ernie45.data.order import GlobalOrder

LEDGER = "data-ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Positions [start, end) of an order, read for a step of a phase.

    kind: what the order is of. order: which one, `GlobalOrder.key`. digest: of the records there.
    """

    phase: str
    step: int
    kind: str
    start: int
    end: int
    order: str = ""
    digest: str = ""


class Ledger:
    """Appends a line for every step. Only one process writes; a line is one write, so a killed run leaves at most one torn."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self._noted: tuple[str, int] | None = None  # by this process
        read = [line for line in _lines(self.path) if "skipped" not in line] if self.path.is_file() else []
        self._last = (read[-1]["phase"], read[-1]["step"]) if read else None

    def note(self, reading: Reading) -> None:
        """A step that is about to be learnt; one that a checkpoint lacks is noted again by the run that goes on from it.

        Steps between the last one and this are noted as skipped: the trainer has left them out.
        """
        place = (reading.phase, reading.step)
        if self._noted == place:
            return
        if self._last is not None and self._last[0] == reading.phase and reading.step > self._last[1] + 1:
            self._write({"skipped": True, "phase": reading.phase, "from": self._last[1] + 1, "to": reading.step})
        self._write(vars(reading))
        self._noted = self._last = place

    def _write(self, data: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                torn = size > 0 and file.read(1) != b"\n"
                file.write((b"\n" if torn else b"") + json.dumps(data).encode() + b"\n")
        except OSError as error:
            raise StorageError(f"data ledger ({self.path}) cannot be written: {error}; make room and run again") from error


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a ledger says.

    positions       how far each order was read, by its kind, and by its key where a run has several of a kind.
    problems        what must not be; none: every position before was read exactly once, but for those of skipped steps.
    repeated_steps  steps that were read again after a restart, instead of the first time.
    """

    steps: int
    positions: Mapping[str, int]
    skipped: list[str]
    repeated_steps: int
    problems: list[str] = field(default_factory=list)


def audit(folder: Path, orders: Iterable[GlobalOrder] = ()) -> Audit:
    """Check a run's ledger; with the run's orders, also that the records were theirs. DataError if there is no ledger."""
    path = folder / LEDGER
    if not path.is_file():
        raise DataError(f"data ledger ({path}) does not exist; name the run folder of a pretraining from files")
    live: list[Reading] = []
    places: dict[tuple[str, int], int] = {}
    skipped: list[tuple[str, int, int]] = []
    repeated = 0
    for data in _lines(path):
        if data.pop("skipped", False):
            skipped.append((data["phase"], data["from"], data["to"]))
            continue
        reading = Reading(**data)
        again = places.get((reading.phase, reading.step), len(live))
        for old in live[again:]:  # after a restart: what came behind was not learnt
            del places[old.phase, old.step]
        repeated += len(live) - again
        del live[again:]
        places[reading.phase, reading.step] = len(live)
        live.append(reading)
    problems, positions = _tile(live, skipped)
    known = {order.key: order for order in orders}
    for reading in live:
        order = known.get(reading.order)
        if order is not None and order.digest(reading.start, reading.end) != reading.digest:
            problems.append(f"step {reading.step} of {reading.phase} read other records than those of the order")
    return Audit(
        steps=len(live),
        positions=_by_name(positions),
        skipped=[f"steps {start} to {end - 1} of {phase}" for phase, start, end in skipped],
        repeated_steps=repeated,
        problems=problems,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries; one that was torn by a kill is left out, as its step was not learnt."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _tile(live: list[Reading], skipped: list[tuple[str, int, int]]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Every order must have been read from its beginning on, step by step, without gap or overlap."""
    problems, positions = [], {}
    steps: dict[str, int] = {}
    for reading in live:
        where = f"step {reading.step} of {reading.phase}"
        expected_step = steps.get(reading.phase, 0)
        is_skip = (reading.phase, expected_step, reading.step) in skipped
        if reading.step != expected_step and not is_skip:
            problems.append(f"{where}: steps {expected_step} to {reading.step - 1} before it are missing")
        steps[reading.phase] = reading.step + 1
        expected = positions.get((reading.kind, reading.order), 0)
        if reading.start < expected:
            problems.append(f"{where} read positions {reading.start} to {expected - 1} of {reading.kind} a second time")
        elif reading.start > expected and not is_skip:
            problems.append(f"{where}: positions {expected} to {reading.start - 1} of {reading.kind} were lost")
        positions[reading.kind, reading.order] = max(expected, reading.end)
    return problems, positions


def _by_name(positions: Mapping[tuple[str, str], int]) -> dict[str, int]:
    kinds = [kind for kind, _ in positions]
    return {kind if kinds.count(kind) == 1 else f"{kind} ({order})": end for (kind, order), end in positions.items()}
