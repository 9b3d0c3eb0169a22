"""Wrong folders, files, prompts and full disks, through the command: one line, exit code 2, files as they were."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie45 import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "broken"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command fails with."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("ernie45: error: ")]
    assert len(errors) == 1, captured.err
    assert "Traceback" not in captured.err
    return errors[0]


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scramble_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def another_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def misspelt_key(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    data["num_key_value_head"] = data.pop("num_key_value_heads")
    (folder / "config.json").write_text(json.dumps(data))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (without_config, "has no config.json"),
    (misspelt_key, "num_key_value_head (2) in config.json is not known: probably num_key_value_heads is meant"),
    (cut_weights, "model.safetensors"),
    (scramble_weights, "model.safetensors"),
    (another_architecture, "llama"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[0].__name__)
@pytest.mark.parametrize("command", ["chat", "convert"])
def test_damaged_folders(
    damage: tuple[Callable[[Path], None], str],
    command: str,
    broken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage[0](broken)
    before = contents(tmp_path)
    arguments = {
        "chat": ["chat", "--model", broken, "hello"],
        "convert": ["convert", broken, tmp_path / "out", "--layout", "paddle"],
    }[command]
    assert damage[1] in fails(capsys, *arguments)
    assert contents(tmp_path) == before


def test_an_unknown_config_key(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_max_pixel": 3}))
    assert "unknown key 'image_max_pixel'" in fails(capsys, "chat", "--model", broken, "hello")


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["info"], ["chat", "hello", "--model"], ["eval"], ["serve"]):
        assert "nowhere" in fails(capsys, *arguments, tmp_path / "nowhere")


def test_a_prompt_longer_than_the_context(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "generate", "--model", model_folder, "x" * 300)
    assert "300" in message
    assert "256" in message


def test_a_picture_that_is_none(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("I am a text")
    assert "text.png" in fails(capsys, "chat", "--model", model_folder, "--image", tmp_path / "text.png", "what?")
    assert "missing.png" in fails(capsys, "chat", "--model", model_folder, "--image", tmp_path / "missing.png", "what?")


def test_an_unknown_setting_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "optim.lrr" in fails(capsys, "train", "tiny", "--out", tmp_path / "run", "--set", "optim.lrr=1")
    assert "NAME=VALUE" in fails(capsys, "train", "tiny", "--out", tmp_path / "run", "--set", "optim.lr")
    assert not (tmp_path / "run").exists()


def test_a_destination_with_files_is_left_alone(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    message = fails(capsys, "convert", model_folder, tmp_path, "--layout", "native")
    assert str(tmp_path) in message
    assert contents(tmp_path) == {"letter.txt": b"dear"}


def test_a_full_disk_leaves_nothing_behind(model_folder: Path, tmp_path: Path) -> None:
    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "ernie45.cli", "convert", str(model_folder), str(tmp_path / "out"), "--layout", "paddle"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=allow_small_files_only)
    assert result.returncode == 2, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("ernie45: error: ")]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_image_token_in_text(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "--chat", "--model", model_folder, "what is <|IMAGE_PLACEHOLDER|> this?")
    assert "contains '<|IMAGE_PLACEHOLDER|>', which stands for a picture" in fails(capsys, *arguments)


def test_a_good_folder_works(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model_folder)]) == 0
    assert "files: 1 safetensors" in capsys.readouterr().out
    for layout in ("paddle", "native", "pt"):
        assert cli.main(["convert", str(model_folder), str(tmp_path / layout), "--layout", layout]) == 0
    assert (tmp_path / "pt" / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()
