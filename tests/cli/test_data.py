"""`ernie45 data check`: bad lines are named with their reasons, good ones measured; nothing ends in a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie45.cli import main
from ernie45.data.ledger import Ledger, Reading
from tests.data.corpus import samples, write_corpus


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["data", "check", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def chat(question: Any, answer: str = "a") -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def test_good_files_are_measured(run: Callable, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "set.jsonl", samples(40))
    sums = tmp_path / "sums.csv"
    sums.write_text("question,answer\n1+1?,2\n2+2?,4\n", encoding="utf-8")
    code, out, err = run(path, sums)
    assert (code, err) == (0, "")
    assert f"{path}: 40 records" in out
    assert "42 good, 0 bad, 0 repeated" in out
    assert "forms: openai 40, prompts 2" in out
    assert "with thoughts 47.6%" in out
    assert "of the context of 2,048" in out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    code, data, _ = run(path, sums, "--json", "--decode", "--workers", 1)
    report = json.loads(data)
    assert (code, report["records"]) == (0, {str(path): 40, str(sums): 2})
    assert report["kinds"] == {"record": 40, "prompt": 2}
    assert f"{report['tokens']['total']:,}" in out, "headers tell the same sizes as whole pictures"
    assert f"{report['patches']['longest']:,}" in out


def test_bad_lines_and_repetitions_are_named(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    lines = [chat("q"), "{half", chat("q"), '{"messages": []}', chat([{"type": "image", "image": "gone.png"}]), chat("1" * 900)]
    path.write_text("\n".join(lines) + '\n{"messages": [{"role', encoding="utf-8")
    code, out, _ = run(path, "--context", 300)
    assert code == 2
    found = [line for line in out.splitlines() if line.startswith("bad: ")]
    expected = {
        2: "is not JSON",
        4: "messages must be a list",
        5: "does not exist",
        6: "more than the context of 300",
        7: "is cut off",
    }
    for line, (number, reason) in zip(found, expected.items(), strict=True):
        assert line.startswith(f"bad: {path}:{number}")
        assert reason in line
    assert f"repeated: {path}:3 is {path}:1 again" in out
    report = json.loads(run(path, "--json", "--context", 300)[1])
    assert [entry["record"] for entry in report["bad"]] == [f"{path}:{number}" for number in expected]
    assert report["repeated"] == [{"record": f"{path}:3", "first": f"{path}:1"}]


def test_pairs_and_documents_are_checked_too(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    lines = [pair, {**pair, "rejected": "a"}, {"text": "a document"}, {"src": ["q"], "tgt": ["a"]}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code, out, _ = run(path)
    assert code == 2
    assert "set.jsonl:2: chosen and rejected are equal" in out
    assert "forms: pairs 1, documents 1, erniekit 1" in out
    code, out, _ = run(path, "--format", "documents")
    assert "3 bad" in out


def test_no_good_record_at_all(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("no json\n", encoding="utf-8")
    code, out, _ = run(path)
    assert code == 2
    assert "0 good, 1 bad, 0 repeated" in out


def test_the_audit_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "mine" / "run")
    for step in range(3):
        ledger.note(Reading(phase="p", step=step, kind="all", start=4 * step, end=4 * step + 4))
    assert main(["data", "audit", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "3 steps, 12 records of all; 0 steps read again" in out
    assert out.endswith("every record was read exactly once\n")
    ledger.note(Reading(phase="p", step=3, kind="all", start=10, end=14))
    assert main(["data", "audit", str(tmp_path / "mine" / "run")]) == 2
    assert "wrong: step 3 of p read positions 10 to 11 of all a second time" in capsys.readouterr().out
    assert main(["data", "audit", str(tmp_path / "mine"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[str(tmp_path / "mine")]["steps"] == 4
    assert main(["data", "audit", str(tmp_path)]) == 2
    assert "does not exist; name the run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", (), "is empty; it needs at least one record"),
        (None, (), "does not exist; check the path"),
        (b"{}", ("--format", "opnai"), r"--format ('opnai') must be one of"),
        (b"{}", ("--model", "nowhere"), r"--model ('nowhere') must be a folder with config.json, or tiny"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    run: Callable, tmp_path: Path, content: bytes | None, arguments: tuple, message: str
) -> None:
    path = tmp_path / "set.jsonl"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run(path, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
