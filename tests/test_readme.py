"""README and docs say what is true: commands parse and run, files and pictures exist, Python code works.

Knows nothing about how any of it works.
"""

import re
import shlex
from pathlib import Path

import pytest

from ernie45 import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ERNIE45 = [words[1:] for words in command_lines() if words[0] == "ernie45"]
MAKE = [words[1] for words in command_lines() if words[0] == "make"]
# What needs an adapter of the reader's own runs in tests/test_examples.py.
RUNNABLE = [
    words
    for words in ERNIE45
    if words[0] in ("info", "generate", "chat", "convert", "eval") and "cuda" not in words and "--merge" not in words
]


def test_there_are_commands() -> None:
    assert {words[0] for words in ERNIE45} == set(cli.COMMANDS) - {"demo"}
    assert MAKE == ["demo", "test"]


@pytest.mark.parametrize("words", ERNIE45, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    assert cli.parse(words).command == words[0]


@pytest.mark.parametrize("target", MAKE)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in RUNNABLE if words != ["chat"]], ids=" ".join)
def test_the_quick_commands_run(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.replace("/tmp/", f"{tmp_path}/") for word in words]
    if words[0] == "eval":
        words[words.index("--num") + 1] = "1"
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip()


def test_the_flags_of_fastdeploy_parse() -> None:
    from ernie45.entrypoints.flag_table import ALL_FLAGS
    from ernie45.entrypoints.flags import to_config
    from ernie45.entrypoints.openai.api_server import build_parser

    for words in command_lines():
        if words[:2] == ["python", "-m"]:
            assert to_config(build_parser().parse_args(words[3:]), ALL_FLAGS, fastdeploy=True).port == 8180


PYTHON = blocks("python") + blocks("python", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[0])
def test_the_python_code_runs(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_scores_in_the_readme_are_those_of_the_shipped_model() -> None:
    """Within three points, which is what another CPU's rounding may change."""
    from ernie45.evals.tiny import TITLES, evaluate

    for skill, score in evaluate("tiny", num_prompts=300, skills=["sum2", "sum3"]).skills.items():
        row = re.search(rf"^\| {TITLES[skill]} \| ([\d.]+) \| ([\d.]+) \|$", README, flags=re.MULTILINE)
        assert row, skill
        assert [float(row[1]), float(row[2])] == pytest.approx([100 * score.thinking, 100 * score.direct], abs=3)


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_and_pictures_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    folder = (ROOT / page).parent
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py|(?:[\w-]+/)+)`", text)
    places = [ROOT, ROOT / "ernie45"]
    planned = {"parallel/", "quant/"} if page == "docs/architecture.md" else set()
    assert [name for name in names if name not in planned and not any((place / name).exists() for place in places)] == []
