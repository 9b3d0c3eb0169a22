"""The report: runs as they are found on disk, comparison, and a page that fetches nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ernie45 import cli
from ernie45.config.errors import ConfigError
from ernie45.recipes.report import differences, flat, read_run, read_runs, thinned
from ernie45.recipes.report_page import page
from ernie45.recipes.report_samples import Answers, sampled_answers

NO_ANSWERS = Answers(rows=[], note="")


def entry(step: int, **more: Any) -> dict[str, Any]:
    stage = "text" if step < 20 else "joint"
    base = {"step": step, "stage": stage, "loss": 5.0 / (step + 1), "lr_factor": 1.0, "grad_norm": 0.5, "stop": False}
    return {**base, "lrs": {"text": 0.1, "tower": None if step < 20 else 0.2}, "loss.source.read": 2.0, **more}


def write_run(folder: Path, num_steps: int = 40, lr: float = 0.1, broken: str = "") -> Path:
    run = folder / "run"
    run.mkdir(parents=True)
    load = {"text_load": [[0.5, 0.5], [1.0, 0.0]], "text_violation": 1.0, "text_entropy": 0.5, "text_orthogonality": 0.1}
    lines = [json.dumps(entry(step, **(load if step % 5 == 0 else {}))) for step in range(num_steps)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n" + broken)
    phases = [{"name": "text", "steps": 20}, {"name": "joint", "steps": 20}]
    settings = {"stage": "pretrain", "recipe": "tiny", "model": None, "config": {"optim": {"lr": lr}, "phases": phases}}
    (run / "settings.json").write_text(json.dumps(settings))
    return folder


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_run_is_read_as_it_was_left(tmp_path: Path) -> None:
    """A last line cut by a kill is left out and said; phases, series and final numbers are those of the log."""
    run = read_run(write_run(tmp_path / "a", broken='{"step": 40, "sta'))
    assert (len(run.entries), run.broken_lines) == (40, 1)
    assert run.phases == [("text", 0), ("joint", 20)]
    assert run.series("loss")[-1] == (39, 0.125)
    assert run.final("loss") == pytest.approx((5 / 39 + 5 / 40) / 2)
    assert run.rates()["tower"][0] == (20, 0.2), "a group that rests has no point"
    assert [step for step, _ in run.loads("text")] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert run.settings["phases.joint.steps"] == 20


@pytest.mark.parametrize("what", ["empty", "wrong", "nothing learnt", "settings"])
def test_folders_that_are_no_run_are_one_line(tmp_path: Path, what: str) -> None:
    write_run(tmp_path / "near" / "good")
    folder = tmp_path / "near"
    message = "must be the folder of a run.*did you mean .*near/good"
    if what == "empty":
        folder, message = tmp_path / "nowhere", "must be the folder of a run.*--out folder"
    elif what == "nothing learnt":
        folder, message = write_run(tmp_path / "new", num_steps=0, broken="{"), "has no step"
    elif what == "settings":
        folder, message = write_run(tmp_path / "broken"), "settings.json is not JSON"
        (folder / "run" / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match=message):
        read_run(folder)


def test_runs_are_compared_by_setting_and_by_number(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "x" / "out"), write_run(tmp_path / "y" / "out", lr=0.2, num_steps=30)])
    assert [run.name for run in runs] == ["x/out", "y/out"]
    assert differences(runs) == [("optim.lr", [0.1, 0.2])]
    data = data_of(page(runs, NO_ANSWERS))
    assert data["differences"] == [["optim.lr", "0.1", "0.2"]]
    (loss,) = [chart for group in data["groups"] if group["title"] == "Loss" for chart in group["charts"]]
    assert [line["label"] for line in loss["lines"]] == ["x/out", "y/out"]
    assert next(values for name, values in data["final"] if name == "loss") == [run.final("loss") for run in runs]
    assert len(data["heat"]) == 2


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b>")
    log = folder / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + json.dumps(entry(40, rewound=3, why="loss is </script> nan")) + "\n")
    text = page([read_run(folder)], NO_ANSWERS)
    assert "<b>" not in text.split("</head>")[0]
    assert text.count("</script>") == 2
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://(?!www\.w3\.org/2000/svg)|@import|url\(""", text)
    data = data_of(text)
    titles = {group["title"]: [chart["title"] for chart in group["charts"]] for group in data["groups"]}
    assert titles["Loss by source"] == ["read"]
    assert titles["Learning rates and gradient"] == ["learning rate", "gradient norm, before clipping"]
    assert len(titles["Router health"]) == 3
    assert data["heat"][0]["tables"][0] == [[0.5, 0.5], [1.0, 0.0]]
    assert data["events"] == [["<b>", 40, "rewound: 3, why: loss is </script> nan"]]


def test_series_are_thinned_by_means() -> None:
    points = thinned([(step, float(step)) for step in range(2400)])
    assert len(points) == 600
    assert points[0] == (3, 1.5)
    assert thinned([]) == []
    assert flat({"config": {"a": {"b": 1}}, "c": [1, 2]}) == {"a.b": 1, "c": [1, 2]}


def test_answers_are_asked_of_the_start_and_the_result(tmp_path: Path) -> None:
    """The shipped model as the start of an unfinished run, and as the result of a run that is finished.

    Of a run of pretraining it is asked in the form of a document, which this model answers in chat form only by chance.
    """
    run = read_run(write_run(tmp_path / "a"))
    run.settings["stage"] = "sft"  # type: ignore[index]
    started = read_run(write_run(tmp_path / "b"))
    started.settings["model"] = "tiny"  # type: ignore[index]
    assert "no finished model" in sampled_answers([started], 1).note
    for file in Path("ernie45/assets/tiny").iterdir():
        (run.out / file.name).symlink_to(file.resolve())
    answers = sampled_answers([run, started], 1)
    assert all(row.before is None and row.after[1] is None for row in answers.rows)
    assert sum(row.after[0].strip() == row.expected for row in answers.rows if row.after[0]) >= 4
    assert sampled_answers([run], 0).rows == []
    run.settings["stage"] = "pretrain"  # type: ignore[index]
    as_documents = sampled_answers([run], 1)
    assert "beginning of a document" in as_documents.note
    assert all(row.after[0] is not None for row in as_documents.rows)


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(write_run(tmp_path / "a")), tmp_path / "page.html"
    assert cli.main(["report", folder, "--out", str(out), "--samples", "0"]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert out.read_text().startswith("<!doctype html>")
    assert cli.main(["report", folder, "--out", str(tmp_path / "page.pdf")]) == 2
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
