"""TensorBoard's files: what its own reader finds in them, after a run that was cut and went on."""

import sys
from pathlib import Path

import pytest

from ernie45.train.board import FOLDER, Board


def test_its_own_reader_finds_the_steps_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (range(4), range(2, 5)):  # the second begins again at step 2
        with Board(tmp_path) as board:
            for step in steps:
                rates = {"text": 0.1, "tower": None}
                board.write({"step": step, "stage": "sft", "loss.text": step / 2, "lrs": rates, "stop": False})
    events = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss/text", "lr/text"]
    assert [(event.step, event.value) for event in events.Scalars("loss/text")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 2.0),
    ]


def test_without_the_package_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with Board(tmp_path) as board:
        board.write({"step": 0, "loss": 1.0})
    assert not (tmp_path / FOLDER).exists()
