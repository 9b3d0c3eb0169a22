"""The page of a report: which curves stand where, and one HTML file with data, style and script inside.

Knows nothing about how runs are read or answers are made.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from ernie45.recipes.report import RunLog, differences, metric_names
from ernie45.recipes.report_samples import Answers

ASSETS = Path(__file__).parents[1] / "assets" / "report"
_ROUTERS = ("violation", "entropy", "orthogonality")
_SPEED = ("tokens_per_second", "mfu", "seconds", "data_seconds", "memory")
_TOKENS = ("tokens", "tokens_text", "tokens_vision", "patches", "pictures")
_HIDDEN = {"cpu_seconds"}
TITLES = {
    "loss.text": "loss: texts",
    "loss.pictures": "loss: with pictures",
    "mtp_loss": "loss: tokens ahead (MTP)",
    "grad_norm": "gradient norm, before clipping",
    "tokens_per_second": "tokens a second",
    "mfu": "model FLOPs utilisation",
    "seconds": "seconds a step",
    "data_seconds": "seconds a step waiting for data",
    "memory": "memory, bytes at most",
    "tokens_text": "tokens of text a step",
    "tokens_vision": "visual tokens a step",
}
_ROUTER_TITLES = {
    "violation": "busiest expert above the mean, worst layer (0 is even)",
    "entropy": "router entropy, share of the largest",
    "orthogonality": "overlap of experts' gates (0 is orthogonal)",
}


def page(runs: Sequence[RunLog], answers: Answers, max_settings: int = 2000) -> str:
    """The whole HTML document. It fetches nothing."""
    title = "Training run " + runs[0].name if len(runs) == 1 else f"{len(runs)} training runs compared"
    data = {
        "phases": [{"name": name, "first": first} for name, first in runs[0].phases],
        "runs": [{"name": run.name, "about": about(run), "config": _config_rows(run)[:max_settings]} for run in runs],
        "final": _final(runs),
        "groups": [group for group in _groups(runs) if group["charts"]],
        "heat": [map_ for run in runs for map_ in _heat(run, several=len(runs) > 1)],
        "samples": [one.to_dict() for one in answers.rows],
        "samples_note": answers.note,
        "events": [[run.name, step, what] for run in runs for step, what in run.events()],
        "differences": [[key, *map(_shown, values)] for key, values in differences(list(runs))],
    }
    # In a script element, only "</" could end it early.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        lead=html.escape("Curves, experts, speed, answers and settings; written by ernie45 report."),
        style=(ASSETS / "style.css").read_text(encoding="utf-8"),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
        data=text,
    )


def about(run: RunLog) -> str:
    """Stage, recipe, start and steps in a line."""
    stage = run.settings.get("stage", "tiny")
    recipe = f"/{run.settings['recipe']}" if "recipe" in run.settings else ""
    start = f" from {run.settings['model']}" if run.settings.get("model") else ""
    cut = f", {run.broken_lines} broken lines left out" if run.broken_lines else ""
    return f"{stage}{recipe}{start}, seed {run.settings.get('seed', '?')}, {run.entries[-1]['step'] + 1} steps{cut}"


def _groups(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    names = metric_names(runs)
    pools = [modality for modality in ("text", "vision") if f"{modality}_violation" in names]
    router = [(f"{modality}_{fact}", f"{modality}: {_ROUTER_TITLES[fact]}") for fact in _ROUTERS for modality in pools]
    sources = [name for name in names if name.startswith("loss.source.")]
    losses = [name for name in names if ("loss" in name.split("_") or name.startswith("loss")) and name not in sources]
    taken = {*losses, *sources, *dict(router), *_SPEED, *_TOKENS, "grad_norm", *_HIDDEN}
    others = [name for name in names if name not in taken]
    return [
        _group("Loss", "", [_chart(runs, name, log=True) for name in losses], log=True),
        _group("Loss by source", "", _by_source(runs, sources), log=True),
        _group("Other measures", "", [_chart(runs, name) for name in others]),
        _group("Router health", "", [_chart(runs, name, title, zero=True) for name, title in router]),
        _group("Learning rates and gradient", "", [*_rates(runs), _chart(runs, "grad_norm", log=True)]),
        _group("Throughput", "", [_chart(runs, name, zero=True) for name in (*_SPEED, *_TOKENS)]),
    ]


def _group(title: str, note: str, charts: list[dict[str, Any]], log: bool = False) -> dict[str, Any]:
    return {"title": title, "note": note, "log": log, "charts": [chart for chart in charts if chart["lines"]]}


def _chart(runs: Sequence[RunLog], name: str, title: str = "", log: bool = False, zero: bool = False) -> dict[str, Any]:
    """One metric, a line a run."""
    series = [(place, run.name, run.series(name)) for place, run in enumerate(runs)]
    lines = [
        {"label": label, "colour": place, "points": points, "breaks": [first for _, first in runs[place].phases]}
        for place, label, points in series
        if points
    ]
    return {"title": title or TITLES.get(name, name.replace("_", " ")), "log": log, "zero": zero, "lines": lines}


def _by_source(runs: Sequence[RunLog], names: list[str]) -> list[dict[str, Any]]:
    """A chart a source: with several runs, and because a dozen lines in one would hide each other."""
    return [_chart(runs, name, name.removeprefix("loss.source."), log=True) for name in sorted(names)]


def _rates(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """A chart a run, a line a group of parameters."""
    charts = []
    for run in runs:
        lines = [
            {"label": group, "colour": place, "points": points}
            for place, (group, points) in enumerate(run.rates().items())
            if points
        ]
        title = "learning rate" + (f": {run.name}" if len(runs) > 1 else "")
        charts.append({"title": title, "log": False, "zero": True, "lines": lines, "always": True})
    return charts


def _heat(run: RunLog, several: bool) -> list[dict[str, Any]]:
    maps = []
    for modality in ("text", "vision"):
        loads = run.loads(modality)
        if loads:
            maps.append(
                {
                    "title": f"{modality} experts" + (f": {run.name}" if several else ""),
                    "steps": [step for step, _ in loads],
                    "layers": [f"MoE layer {number}" for number in range(1, len(loads[0][1]) + 1)],
                    "tables": [table for _, table in loads],
                }
            )
    return maps


def _final(runs: Sequence[RunLog]) -> list[list[Any]]:
    names = [name for name in metric_names(runs) if name not in _HIDDEN | set(_TOKENS)]
    rows = [[TITLES.get(name, name.replace("_", " ")), [run.final(name) for run in runs]] for name in names]
    return [row for row in rows if any(value is not None for value in row[1])]


def _config_rows(run: RunLog) -> list[list[str]]:
    return [[key, _shown(value)] for key, value in run.settings.items()]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
