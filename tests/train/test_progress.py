"""The live display: what it shows of any stage's entries, and that it fits a narrow terminal."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from ernie45.train.progress import Progress, bars, learnt, speed

ENTRY: dict[str, Any] = {
    "step": 811,
    "stage": "joint",
    "loss": 0.41234,
    "accuracy": 0.871,
    "loss.text": 0.3,
    "loss.pictures": 0.44,
    "lrs": {"text": 8e-3, "tower": 4e-3},
    "grad_norm": 0.84,
    "seconds": 0.4,
    "data_seconds": 0.01,
    "tokens_per_second": 8412.0,
    "mfu": 0.31,
    "memory": 9.2e8,
    "text_load": [[0.1, 0.4, 0.5, 0.0]],
    "text_violation": 1.0,
    "text_entropy": 0.9,
    "vision_load": [[1 / 64] * 64],
    "vision_violation": 0.0,
    "vision_entropy": 1.0,
}


def drawn(entries: list[dict[str, Any]]) -> list[str]:
    """The lines of the last picture in a terminal of 80 columns."""
    console = Console(width=80, height=20, force_terminal=True, color_system=None, file=io.StringIO())
    with Progress(2000, console) as progress:
        for entry in entries:
            progress.show(entry)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[?0-9]*[a-zA-Z]|\r", "", text.split("\x1b[?25h")[0].split("\x1b[2K")[-1]).splitlines()


def test_a_terminal_of_80_columns_shows_the_whole_run() -> None:
    lines = drawn([ENTRY])
    assert all(len(line) <= 80 for line in lines), lines
    assert "…" not in "".join(lines), "nothing is cut off"
    text = "\n".join(lines)
    for shown in ("joint", "812/2000", "loss 0.412", "accuracy 0.871", "lr 0.008", "grad 0.840", "8,412 tokens/s", "mfu 31.0%"):
        assert shown in text
    assert "text experts   ▂▇█·  violation 1.00  entropy 0.90" in text


def test_loads_stay_until_the_next_table_and_go_with_their_stage() -> None:
    without = {name: value for name, value in ENTRY.items() if not name.endswith("_load")}
    assert "▂▇█·" in "\n".join(drawn([ENTRY, without]))
    assert "experts" not in "\n".join(drawn([ENTRY, without | {"stage": "sft"}]))


def test_other_stages_show_what_they_learn_by() -> None:
    assert learnt({"reward": 0.5, "kl": 0.001, "loss": -0.01, "told": "words", "length": 230.0}) == [
        "loss -0.010",
        "reward 0.500",
        "kl 0.001",
        "length 230",
    ]
    assert learnt({}) == speed({}) == []


def test_many_experts_share_bars_and_a_busy_one_is_seen() -> None:
    busy = [[0.5] + [0.5 / 63] * 63]
    assert bars(busy) == "█" + "▃" * 31
    assert len(bars(busy)) == 32


def test_elsewhere_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, Console(force_terminal=False)) as progress:
        for step, stage in enumerate(("vision", "vision", "joint")):
            progress.show({"step": step, "stage": stage, "loss": 1.0})
    assert capsys.readouterr().out.splitlines() == ["step 1/3  vision     loss 1.000", "step 3/3  joint      loss 1.000"]
