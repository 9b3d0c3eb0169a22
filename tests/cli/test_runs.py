"""`demo`, `serve` and `train`: what they start, print and return."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie45 import cli
from ernie45.commands import showcase
from ernie45.commands.conversation import Conversation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sample pictures for the demo."""
    Image.new("L", (112, 28), 255).save(tmp_path / "sum.png")
    entries = [
        {"file": "scene.png", "question": "Where?", "answer": "left", "kind": "scene"},
        {"file": "sum.png", "question": "What is the sum?", "answer": "7", "kind": "sum"},
    ]
    (tmp_path / "samples.json").write_text(json.dumps(entries))
    monkeypatch.setattr(showcase, "SAMPLES", tmp_path)
    return tmp_path


def test_demo_answers_twice(conversation: Conversation, llm: Any, samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--no-serve"]) == 0
    out = capsys.readouterr().out
    with_thought, without = out.index("-- thinking --"), out.index("-- without thinking --")
    assert out.index("What is the sum?") < with_thought < out.index("thinking: 3 and 4\n7\n") < without
    assert "The right answer is 7." in out
    assert "\x1b" not in out
    assert [len(inputs.media) for inputs, _ in llm.asked] == [1, 1]
    first, second = (inputs for inputs, _ in llm.asked)
    assert len(first) != len(second)  # one prompt opens a thought; neither has the other's turn in it


def test_demo_says_that_the_port_is_taken(
    conversation: Conversation, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--port", str(port)]) == 2
    captured = capsys.readouterr()
    assert f"port ({port}) is in use" in captured.err
    assert "--port" in captured.err
    assert "Chat page" not in captured.out


def test_serve_answers_and_ends_by_ctrl_c(model_folder: Path) -> None:
    command = [sys.executable, "-m", "ernie45.cli", "serve", str(model_folder), "--port", "0", "--served-model-name", "me"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stderr is not None
        ready = next(line for line in server.stderr if line.startswith("ready:"))
        address = re.search(r"http://127\.0\.0\.1:\d+", ready)
        assert address, ready
        with urllib.request.urlopen(f"{address[0]}/v1/models", timeout=30) as response:
            assert json.load(response)["data"][0]["id"] == "me"
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.communicate()


def test_train_hands_over_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []

    def run(out: Path, **options: Any) -> bool:
        calls.append((out, options))
        return len(calls) == 1

    monkeypatch.setattr("ernie45.recipes.tiny.run", run)
    assert cli.main(["train", "tiny", "--seed", "3", "--set", "optim.lr=0.01", "--set", "joint_steps=9"]) == 0
    expected = {"seed": 3, "processes": 2, "fresh": False, "overrides": {"optim.lr": "0.01", "joint_steps": "9"}}
    assert calls == [(Path("runs/tiny"), expected)]
    assert cli.main(["train", "tiny", "--out", "here", "--fresh"]) == 130
    assert "stopped, with a checkpoint in here" in capsys.readouterr().err
