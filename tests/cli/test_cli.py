"""The command as a user meets it: help, wrong input, interruption."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie45 import cli
from ernie45.config.errors import ConfigError

ROOT = Path(__file__).parents[2]
# Fast paths must not pay for torch; what Python itself needs to start is not ours.
HELP_SECONDS = 0.3


def run_cli(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ernie45.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)  # type: ignore[call-overload]


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text.strip()


def test_help_answers_in_a_blink() -> None:
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        result = run_cli("--help")
        fastest = min(fastest, time.perf_counter() - start)
        assert result.returncode == 0
    assert fastest < HELP_SECONDS


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_of_every_command_teaches_and_loads_no_torch(command: str) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    code = f"import sys; from ernie45.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    code += "\nsys.exit('torch' in sys.modules and 'torch was loaded')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "80"}
    )
    assert result.returncode == 0, result.stderr
    assert f"ernie45 {command}".strip() in result.stdout
    assert "examples:" in result.stdout or "start here:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inf", "tiny"], "ernie45: error: command \\('inf'\\) must be one of demo, chat, .*; did you mean info\\?"),
        (
            ["chat", "--tempreature", "1"],
            "ernie45 chat: error: option \\(--tempreature\\) is not one of .*; did you mean --temperature\\?",
        ),
        (["chat", "--temperature", "hot"], "ernie45 chat: error: --temperature \\('hot'\\) must be a number from 0 to 2"),
        (["chat", "--max-tokens", "0"], "ernie45 chat: error: --max-tokens \\(0\\) must be a whole number of at least 1"),
        (["chat", "two", "words"], "ernie45 chat: error: argument \\('words'\\) is one too many; put it in quotes .*"),
        (
            ["convert", "a", "b", "--layout", "padle"],
            ".*--layout \\('padle'\\) must be one of pt, native, paddle; did you mean paddle\\?",
        ),
        (["train", "tinny"], "ernie45 train: error: STAGE \\('tinny'\\) must be one of .*; did you mean tiny\\?"),
        (["serve", "--model", "tiny"], "ernie45 serve: error: --model is not for this server; the model has no flag: .*"),
        (["serve", "tiny", "--enable-lora"], ".*--enable-lora is not for this server; leave it out: --lora-modules .*"),
        (["serve", "tiny", "--speculative-config", "ngram"], '.*for example \'{"method": "ngram", .*'),
        (["serve", "tiny", "--speculative-config", "{}"], ".*--speculative-config \\('{}'\\) must name a method, .*"),
        (["serve", "tiny", "--port", "99999"], ".*--port \\(99999\\) must be a whole number from 0 to 65535"),
        ([], "ernie45: error: a command is needed, one of .*start with `ernie45 demo`.*"),
        (["info", "28b"], "ernie45: error: model \\('28b'\\) must be a folder or one of .*"),
        (["generate", "x", "--image", "a.png"], "ernie45: error: --image and --video need --chat.*"),
    ],
)
def test_wrong_input_is_one_line_with_a_way_out(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(message, one_line(captured.err)), captured.err


def test_an_error_of_several_lines_is_printed_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_args: object) -> None:
        raise ConfigError("first\n  second")

    monkeypatch.setattr(cli.info, "run", fail)
    assert cli.main(["info"]) == 2
    assert one_line(capsys.readouterr().err) == "ernie45: error: first second"


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "run", interrupt)
    assert cli.main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m ernie45.cli info 28b-a3b | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "ERNIE-4.5-VL-28B-A3B (MoE; text, images, video)\n"
    assert result.stderr == ""
