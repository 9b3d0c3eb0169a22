"""`eval`: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest

from ernie45 import cli
from ernie45.config.engine import EngineConfig
from ernie45.evals import answerers


def test_tables_json_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "tiny", "--num", "2", "--seed", "2", "--tasks", "arithmetic", "--thinking", "on", "--dtype", "float32"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "text: arithmetic" in table
    assert "2 questions a task" in table
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    score = found["tasks"]["arithmetic"]["thinking"]
    assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
    assert score["num_questions"] == 2
    assert "direct" not in found["tasks"]["arithmetic"]
    assert cli.main([*words, "--markdown", "--against", "tiny"]) == 0
    row = f"| text: arithmetic | {100 * score['score']:.1f} | +0.0 [+0, +0] |"
    assert row in capsys.readouterr().out.splitlines()


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--list"]) == 0
    assert "chart_total    bar chart: total" in capsys.readouterr().out.splitlines()
    assert cli.main(["eval", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sum2"] == "sum of 2 digits"


def test_ones_own_file_with_a_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"messages": [{"role": "user", "content": "What is 2+3?"}], "answer": "5.0", "domain": name} for name in ("a", "b")]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ["eval", "tiny", "--data", str(file), "--thinking", "off", "--json", "--max-tokens", "16"]
    assert cli.main([*words, "--domains", '{"a": "numeric", "b": "0.5*numeric + 2*length"}']) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["data"]["direct"]
    assert found["events"] == {}
    assert found["num_questions"] == 2
    assert cli.main([*words, "--reward", "code"]) == 2
    assert "no answer of tiny has a score; the first: no_tests" in capsys.readouterr().err
    assert cli.main([*words, "--domains", '{"a": "numeric"}']) == 2
    assert "domain ('b') has no reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "MODEL or --server must be given"),
        (["tiny", "--server", "http://x"], "one of them"),
        (["tiny", "--tasks", "nope"], "task ('nope') must be one of"),
        (["tiny", "--reward", "exact"], "--reward must go with --data"),
        (["tiny", "--data", "x.jsonl", "--tasks", "sum2"], "must not go together"),
        (["tiny", "--data", "x.jsonl"], "x.jsonl"),
        (["tiny", "--samples", "4"], "must be 1 at temperature 0"),
        (["tiny", "--temperature", "1", "--pass-at", "two"], "--pass-at ('two')"),
        (["tiny", "--temperature", "1", "--pass-at", "2"], "pass-at (2)"),
        (["tiny", "--lm-eval", "gsm8k", "--tasks", "sum2"], "--lm-eval must stand without"),
        (["tiny", "--lm-eval-options", "--limit 2"], "must go with --lm-eval"),
        (["tiny", "--thinking", "maybe"], "must be one of both, on, off"),
        (["/nowhere"], "/nowhere"),
        (["tiny", "--answers", "/nowhere/x.jsonl"], "--answers (/nowhere/x.jsonl) cannot be written"),
        (["tiny", "--num", "1", "--device", "warp"], "device ('warp')"),
    ],
)
def test_mistakes_are_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["eval", *words])
    except SystemExit as error:  # argparse's own way out
        code = error.code
    assert code == 2
    err = capsys.readouterr().err
    assert why in err
    assert len(err.strip().splitlines()) == 1


def test_picture_tasks_of_a_model_without_vision(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Skipped with the reason, unless asked for by name."""
    original = answerers.EngineAnswerer.load

    def blind(model: str, config: EngineConfig) -> answerers.EngineAnswerer:
        assert config.max_num_seqs == 64
        answerer = original(model, config)
        answerer.sees_pictures = False
        return answerer

    monkeypatch.setattr(answerers.EngineAnswerer, "load", blind)
    assert cli.main(["eval", "tiny", "--num", "1", "--thinking", "off", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tasks"]) == {"arithmetic", "sentence"}
    assert found["skipped"]["sum2"] == "the model has no vision, and the task shows pictures"
    assert cli.main(["eval", "tiny", "--num", "1", "--tasks", "sum2"]) == 2
    assert "task ('sum2') cannot be asked" in capsys.readouterr().err
