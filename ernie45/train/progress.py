"""What a person sees while training: a small live display in a terminal, a plain line now and then elsewhere.

Knows nothing about training; it is told every step's entry, of whatever stage, and shows what is in it.
"""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_SECONDS = 10.0
_LEARNT = (
    "loss",
    "reward",
    "accuracy",
    "eval_loss",
    "margin",
    "kl",
    "entropy",
    "length",
    "sft_loss",
    "mtp_loss",
    "loss.text",
    "loss.pictures",
)
"""What a stage learns by, the most telling first; what is there is shown, and of the rest nothing."""
_NUM_LEARNT = 4
_LEVELS = "▁▂▃▄▅▆▇█"
_BARS = 32
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """A context; `show` takes entries of the metrics log."""

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        self._num_steps = num_steps
        self._console = console or Console()
        self._shown_at = -PLAIN_SECONDS
        self._stage = ""
        self._loads: dict[str, list[list[float]]] = {}
        self._live: Live | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=self._console, expand=True)
            self._task = self._bar.add_task("starting", total=num_steps)
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, entry: Mapping[str, Any]) -> None:
        """Update the display, or print a line every ten seconds, at a new stage and at the end."""
        step = entry["step"] + 1
        if entry["stage"] != self._stage:
            self._loads.clear()
        self._loads |= {name.removesuffix("_load"): load for name, load in entry.items() if name.endswith("_load")}
        if self._live is not None:
            if not self._stage:  # a run that goes on did not make its first steps just now
                self._bar.reset(self._task, completed=step, total=self._num_steps)
            self._stage = entry["stage"]
            self._bar.update(self._task, completed=step, description=self._stage)
            self._live.update(Group(self._bar, *self._lines(entry)))
            return
        now = time.monotonic()
        if now - self._shown_at < PLAIN_SECONDS and entry["stage"] == self._stage and step < self._num_steps:
            return
        self._shown_at, self._stage = now, entry["stage"]
        sys.stdout.write(f"step {step}/{self._num_steps}  {entry['stage']:<10} {'  '.join(learnt(entry) + speed(entry)[:1])}\n")
        sys.stdout.flush()

    def _lines(self, entry: Mapping[str, Any]) -> Iterable[Text]:
        yield _line(learnt(entry))
        yield _line(course(entry) + speed(entry))
        for modality, load in self._loads.items():
            facts = [f"{name} {entry[key]:.2f}" for name in ("violation", "entropy") if (key := f"{modality}_{name}") in entry]
            yield _line([f"{modality + ' experts':<14} {bars(load)}", *facts])


def learnt(entry: Mapping[str, Any]) -> list[str]:
    """The entry's most telling numbers as text, four at most."""
    found = [f"{name} {_short(entry[name])}" for name in _LEARNT if isinstance(entry.get(name), int | float)]
    return found[:_NUM_LEARNT]


def course(entry: Mapping[str, Any]) -> list[str]:
    """Learning rate (the largest group's, or the share of the peak) and gradient norm."""
    rates = [rate for rate in (entry.get("lrs") or {}).values() if rate]
    found = [f"lr {max(rates):.2g}"] if rates else [f"lr ×{entry['lr_factor']:.2f}"] if "lr_factor" in entry else []
    return [*found, f"grad {_short(entry['grad_norm'])}"] if "grad_norm" in entry else found


def speed(entry: Mapping[str, Any]) -> list[str]:
    """Tokens a second, share of the machine's peak, share of time that waits for data, memory."""
    found = [f"{entry['tokens_per_second']:,.0f} tokens/s"] if entry.get("tokens_per_second") else []
    found += [f"mfu {entry['mfu']:.1%}"] if entry.get("mfu") else []
    if entry.get("seconds") and "data_seconds" in entry:
        found.append(f"data {entry['data_seconds'] / entry['seconds']:.0%}")
    return found + ([f"memory {_bytes(entry['memory'])}"] if entry.get("memory") else [])


def bars(load_LE: list[list[float]]) -> str:
    """A bar an expert, its mean share over layers: half height is an even share, a dot is an expert without tokens.

    Of many experts neighbours share a bar, as high as their highest.
    """
    num_experts = len(load_LE[0])
    shares_E = [sum(layer[expert] for layer in load_LE) / len(load_LE) for expert in range(num_experts)]
    per_bar = -(-num_experts // _BARS)
    highest = [max(shares_E[start : start + per_bar]) for start in range(0, num_experts, per_bar)]
    return "".join(_LEVELS[min(int(share * num_experts / 2 * 8), 7)] if share else "·" for share in highest)


def _line(parts: Iterable[str]) -> Text:
    return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"
