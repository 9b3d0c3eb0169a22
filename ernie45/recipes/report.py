"""Reading runs for a report: settings and metrics of one or several run folders, however a run ended.

Knows nothing about pages or models.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie45.config.errors import ConfigError
from ernie45.recipes.runner import RUN_FOLDER, SETTINGS
from ernie45.train.storage import METRICS, read_metrics

_TINY_SETTINGS = "config.json"
_LAST_SHARE = 0.1
_MAX_POINTS = 600
_NOT_MEASURED = {"step", "stage_step", "stop", "lr_factor", "skipped", "rewound", "born_experts"}


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """A run as its folder tells it.

    out: the folder given to `--out`. settings: flat, "a.b" -> value. entries: one a logged step, in order. broken_lines: of the
    log, cut short by a kill. phases: (name, first step).
    """

    name: str
    out: Path
    settings: Mapping[str, Any]
    entries: list[dict[str, Any]]
    broken_lines: int

    @property
    def phases(self) -> list[tuple[str, int]]:
        found: dict[str, int] = {}
        for entry in self.entries:
            found.setdefault(entry["stage"], entry["step"])
        return list(found.items())

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric wherever it was logged, thinned out by means to a few hundred points."""
        return thinned([(entry["step"], entry[name]) for entry in self.entries if _is_number(entry.get(name))])

    def rates(self) -> dict[str, list[tuple[int, float]]]:
        """Learning rate of each group; a group that rests has no point."""
        groups: dict[str, list[tuple[int, float]]] = {}
        for entry in self.entries:
            for group, rate in (entry.get("lrs") or {"of the peak": entry.get("lr_factor")}).items():
                if rate is not None and _is_number(rate):
                    groups.setdefault(group, []).append((entry["step"], rate))
        return {group: thinned(points) for group, points in groups.items()}

    def final(self, name: str) -> float | None:
        """Mean over the last tenth of the last phase's entries; None if it was never logged there."""
        last = [entry for entry in self.entries if entry["stage"] == self.entries[-1]["stage"]]
        tail = last[-max(1, int(len(last) * _LAST_SHARE)) :]
        values = [float(entry[name]) for entry in tail if _is_number(entry.get(name))]
        if not values:  # seldom measured: the last one
            values = [float(entry[name]) for entry in last if _is_number(entry.get(name))][-1:]
        return sum(values) / len(values) if values else None

    def loads(self, modality: str) -> list[tuple[int, list[list[float]]]]:
        """(step, shares [layers][experts]) of the pool's experts."""
        name = f"{modality}_load"
        found = [(entry["step"], entry[name]) for entry in self.entries if name in entry]
        return found[:: max(1, len(found) // 150)]

    def events(self) -> Iterator[tuple[int, str]]:
        """(step, what happened) for skipped steps and returns to an earlier state."""
        for entry in self.entries:
            said = [f"{name}: {entry[name]}" for name in ("skipped", "rewound", "event", "why") if entry.get(name)]
            if said:
                yield entry["step"], ", ".join(said)


def read_run(folder: Path) -> RunLog:
    """A run by its `--out` folder, or the `run` folder inside. ConfigError for one without a run, or with an empty log."""
    out = folder.parent if folder.name == RUN_FOLDER and (folder / METRICS).exists() else folder
    run = out / RUN_FOLDER
    if not (run / METRICS).is_file():
        known = sorted(str(path.parents[1]) for path in folder.glob(f"*/{RUN_FOLDER}/{METRICS}"))[:4]
        hint = f"did you mean {', '.join(known)}?" if known else "name the --out folder of `ernie45 train`"
        raise ConfigError(f"RUN ({folder}) must be the folder of a run, with {RUN_FOLDER}/{METRICS} in it; {hint}")
    entries = [entry for entry in read_metrics(run) if isinstance(entry, dict) and {"step", "stage"} <= entry.keys()]
    if not entries:
        raise ConfigError(f"RUN ({folder}) has no step in {run / METRICS} yet; train it for a moment first")
    num_lines = len((run / METRICS).read_text(encoding="utf-8", errors="replace").splitlines())
    return RunLog(
        name=out.name or str(out), out=out, settings=_settings(run), entries=entries, broken_lines=num_lines - len(entries)
    )


def read_runs(folders: Iterable[Path]) -> list[RunLog]:
    """Several runs; those with one name get their parent folder's before it."""
    runs = [read_run(Path(folder)) for folder in folders]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else _renamed(run, f"{run.out.resolve().parent.name}/{run.name}") for run in runs]


def metric_names(runs: Iterable[RunLog]) -> list[str]:
    """Every number that any run logged, in the order of its first appearance."""
    names = {name: None for run in runs for entry in run.entries for name, value in entry.items() if _is_number(value)}
    return [name for name in names if name not in _NOT_MEASURED]


def differences(runs: list[RunLog]) -> list[tuple[str, list[Any]]]:
    """Settings that are not the same in all runs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = [(key, [run.settings.get(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most a few hundred points: means of neighbours, at the step of the last one."""
    size = -(-len(points) // _MAX_POINTS)
    groups = (points[start : start + size] for start in range(0, len(points), size or 1))
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _settings(run: Path) -> dict[str, Any]:
    for name in (SETTINGS, _TINY_SETTINGS):
        if (run / name).is_file():
            try:
                return flat(json.loads((run / name).read_text(encoding="utf-8")))
            except ValueError as error:
                raise ConfigError(f"{run / name} is not JSON ({error}); the run's settings cannot be shown") from error
    return {}


def flat(data: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as "a.b" -> value; groups with a name of their own by it; without the word config at the front."""
    if isinstance(data, list) and data and all(isinstance(item, dict) and "name" in item for item in data):
        data = {item["name"]: item for item in data}
    if isinstance(data, dict):
        return {key: value for part, inner in data.items() for key, value in flat(inner, f"{name}.{part}".lstrip(".")).items()}
    return {name.removeprefix("config."): data}


def _renamed(run: RunLog, name: str) -> RunLog:
    return RunLog(name=name, out=run.out, settings=run.settings, entries=run.entries, broken_lines=run.broken_lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
