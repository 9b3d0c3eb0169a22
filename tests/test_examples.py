"""The examples run from end to end, shortened to seconds.

Knows nothing about how well they learn; docs/training.md has the figures.
"""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_own_pictures(lora: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_pictures = importlib.import_module("examples.own_pictures")
    out = tmp_path / "run"
    arguments = ["--out", str(out), "--pictures", "24", "--test-pictures", "8", "--steps", "2", *(["--lora"] if lora else [])]
    own_pictures.main(arguments)
    told = capsys.readouterr().out
    assert "after training: " in told
    assert "talk to it: ernie45 chat --model " in told
    record = json.loads((out / "pictures" / "train.jsonl").read_text(encoding="utf-8").splitlines()[3])
    assert record["messages"][1]["content"] == "checks"
    assert (out / "pictures" / record["messages"][0]["content"][0]["image"]).is_file()
    assert (out / ("merged" if lora else ".") / "config.json").is_file()
    assert (out / "adapter_config.json").is_file() == lora


def test_questions_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions_csv = importlib.import_module("examples.questions_csv")
    out = tmp_path / "run"
    arguments = ["--questions", "60", "--test-questions", "12", "--steps", "1"]
    questions_csv.main(["--out", str(out), *arguments])
    told = capsys.readouterr().out
    assert "after training: " in told
    rows = [(out / name).read_text(encoding="utf-8").splitlines()[1:] for name in ("train.csv", "test.csv")]
    assert [len(lines) for lines in rows] == [60, 12]
    assert not set(rows[0]) & set(rows[1])
    assert (out / "config.json").is_file()


def test_every_example_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in (ROOT / "examples").glob("*.py") if f"examples/{file.name}" not in readme] == []
