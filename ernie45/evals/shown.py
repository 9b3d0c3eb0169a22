"""Results as a table, as Markdown or as JSON; of one model, or of two on the same questions.

Knows nothing about how they came about.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ernie45.evals.run import Result, TaskScore, difference
from ernie45.evals.statistics import Interval


def to_dict(result: Result, titles: Mapping[str, str], other: Result | None = None) -> dict[str, Any]:
    """One JSON object; intervals are those of 95 %."""
    sampling = result.sampling
    found: dict[str, Any] = {
        "model": result.model,
        "sampling": {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "seed": sampling.seed},
        "seconds": round(result.seconds, 1),
        "tasks": {
            name: {"title": titles[name], **{form: score.to_dict() for form, score in forms.items()}}
            for name, forms in result.scores.items()
        },
        "skipped": result.skipped,
    }
    if other is not None:
        found["against"] = to_dict(other, titles)
        found["difference"] = {
            name: {form: gap._asdict() for form, gap in _gaps(result, other, name).items() if gap is not None}
            for name in result.scores
            if name in other.scores
        }
    return found


def print_table(result: Result, titles: Mapping[str, str], other: Result | None = None, console: Console | None = None) -> None:
    """Percent with 95 % intervals; how many answers ended by themselves, where not all did; what was skipped or not scored."""
    console = console or Console()
    cut_off = {form for forms in result.scores.values() for form, score in forms.items() if score.stopped < 1}
    table = Table(title=_title(result))
    table.add_column("task")
    for form in _forms(result):
        table.add_column(form, justify="right")
        for k in _ks(result, form):
            table.add_column(f"pass@{k}", justify="right")
        if form in cut_off:
            table.add_column(f"stopped ({form})", justify="right")
        if other is not None:
            table.add_column(f"other ({form})", justify="right")
            table.add_column("difference", justify="right")
    for name, forms in result.scores.items():
        cells = [titles[name]]
        for form, score in forms.items():
            passed = [_percent(score.pass_at.get(k)) for k in _ks(result, form)]
            cells += [_with_interval(score.score), *passed, *([_percent(score.stopped)] if form in cut_off else [])]
            if other is not None:
                theirs = other.scores.get(name, {}).get(form)
                gap = _gaps(result, other, name).get(form)
                cells += [_with_interval(theirs.score if theirs else None), _with_interval(gap, signed=True)]
        table.add_row(*cells)
    console.print(table)
    for line in _notes(result, titles):
        console.print(line, markup=False)


def markdown(result: Result, titles: Mapping[str, str], other: Result | None = None) -> str:
    """Percent by task and form; below, how far the intervals reach."""
    forms = _forms(result)
    gaps = [f"{form} - {other.model}" for form in forms] if other is not None else []
    lines = [f"| right answers, percent | {' | '.join([*forms, *gaps])} |", "|---" + "|---:" * len([*forms, *gaps]) + "|"]
    widest = 0.0
    for name, scores in result.scores.items():
        cells = []
        for score in scores.values():
            cells.append(_percent(score.score.mean if score.score else None))
            widest = max(widest, (score.score.high - score.score.low) / 2 if score.score else 0.0)
        if other is not None:
            found = _gaps(result, other, name)
            cells += [_with_interval(found.get(form), signed=True) for form in forms]
        lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
    lines += ["", f"95 % intervals reach {100 * widest:.1f} points or less to either side."]
    return "\n".join([*lines, *_notes(result, titles)])


def _title(result: Result) -> str:
    numbers = sorted({len(score.values) for forms in result.scores.values() for score in forms.values()})
    questions = "-".join(map(str, numbers[:1] + numbers[1:][-1:]))
    sampling = result.sampling
    how = "greedy" if not sampling.temperature else f"{sampling.samples} answers each at {sampling.temperature:g}"
    return f"{result.model}: {questions} questions a task, percent [95 %], {how}"


def _forms(result: Result) -> list[str]:
    return list(next(iter(result.scores.values()), {}))


def _ks(result: Result, form: str) -> list[int]:
    return sorted({k for forms in result.scores.values() for k in forms[form].pass_at})


def _gaps(result: Result, other: Result, name: str) -> dict[str, Interval | None]:
    theirs: dict[str, TaskScore] = other.scores.get(name, {})
    return {form: difference(score, theirs[form]) for form, score in result.scores[name].items() if form in theirs}


def _notes(result: Result, titles: Mapping[str, str]) -> list[str]:
    lines = [f"skipped {titles[name]}: {reason}" for name, reason in result.skipped.items()]
    for name, forms in result.scores.items():
        for form, score in forms.items():
            if score.events:
                kinds = ", ".join(f"{kind} {number}" for kind, number in score.events.items())
                lines.append(f"without a score, {titles[name]} ({form}): {kinds}")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _with_interval(found: Interval | None, signed: bool = False) -> str:
    if found is None:
        return "-"
    sign = "+" if signed else ""
    return f"{100 * found.mean:{sign}.1f} [{100 * found.low:{sign}.0f}, {100 * found.high:{sign}.0f}]"
