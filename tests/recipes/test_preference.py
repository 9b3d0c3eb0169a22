"""The dpo stage through the runner: it learns, references agree, processes and files do not matter, bad pairs are named."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie45.config.errors import ConfigError, DataError
from ernie45.recipes import runner
from ernie45.train.storage import read_metrics

SHORT = {
    "schedule.num_steps": "20",
    "pairs.generated": "64",
    "pairs.held_out": "24",
    "pairs.pairs_per_step": "8",
    "pairs.form_share": "1",
    "optim.lr": "0.0006",
}
TWO_STEPS = SHORT | {"schedule.num_steps": "2", "pairs.form_share": "0.5", "pairs.held_out": "4"}


@pytest.fixture
def request_(tmp_path: Path) -> runner.Request:
    return runner.Request(stage="dpo", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=SHORT)


def last_metrics(out: Path) -> dict[str, Any]:
    return read_metrics(out / runner.RUN_FOLDER)[-1]


def test_preferences_are_learnt_and_hold_for_new_pictures(request_: runner.Request) -> None:
    assert runner.run(request_)
    entry = last_metrics(request_.out)
    assert entry["held_out_accuracy"] > 0.65
    assert entry["held_out_accuracy/short"] > 0.9, "two pairs in three want it short"
    assert entry["held_out_margin"] > 0.05
    assert (request_.out / "model.safetensors").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"preference.reference": "frozen"},
        {"loop.num_shards": "4"},
        {"preference.losses": "kto_pair", "loop.num_shards": "4"},
        {"lora.rank": "4", "preference.reference": "adapter_off"},
    ],
)
def test_what_must_not_matter(request_: runner.Request, tmp_path: Path, settings: dict[str, str]) -> None:
    """Reference stored or copied, one shard or four: the same second step. KTO's baseline is that of the whole step."""
    base = {name: value for name, value in settings.items() if name in ("preference.losses", "lora.rank")}
    entries = []
    for number, changes in enumerate((base, settings)):
        out = tmp_path / str(number)
        assert runner.run(replace(request_, out=out, overrides=TWO_STEPS | changes))
        entries.append(last_metrics(out))
    for name in ("loss", "margin", "grad_norm", "held_out_margin"):
        assert entries[0][name] == pytest.approx(entries[1][name], rel=2e-3, abs=1e-5), name
    assert entries[0]["grad_norm"] > 1e-3


def test_two_processes_make_the_same_run(request_: runner.Request, tmp_path: Path) -> None:
    settings = TWO_STEPS | {"loop.num_shards": "2", "preference.losses": "sigmoid,kto_pair"}
    command = [sys.executable, "-m", "ernie45", "train", "dpo", "--recipe", "tiny", "--model", "tiny", "--processes", "2"]
    command += ["--out", str(tmp_path / "two"), *(word for item in settings.items() for word in ("--set", "=".join(item)))]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True)
    assert runner.run(replace(request_, overrides=settings))
    one, two = last_metrics(request_.out), last_metrics(tmp_path / "two")
    for name in ("loss", "margin", "kl_chosen", "grad_norm", "held_out_margin", "held_out_accuracy"):
        assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name


def write_pairs(path: Path, num_pairs: int, *more: dict[str, Any]) -> Path:
    pairs = [{"prompt": f"What is {n}+1?", "chosen": f"It is {n + 1}.", "rejected": str(n + 1)} for n in range(num_pairs)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in [*pairs, *more]), encoding="utf-8")
    return path


def test_pairs_from_a_file(request_: runner.Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    equal = {"prompt": "What is 1+1?", "chosen": "2", "rejected": "2"}
    data = write_pairs(tmp_path / "pairs.jsonl", 10, equal)
    request = replace(request_, data=(data,), eval_data=(data,), overrides=TWO_STEPS)
    facts = runner.describe(request)
    assert (facts["pairs"], facts["pairs_left_out"], facts["held_out_pairs"], facts["epochs"]) == (10, 1, 10, 1.6)
    assert not request.out.exists(), "a dry run computes no references"
    assert runner.run(request)
    assert "1 of 11 pairs cannot be used and are left out; the first: " in capsys.readouterr().err
    assert last_metrics(request.out)["held_out_margin"] > 0
    with pytest.raises(DataError, match=r"pairs.jsonl:11: chosen and rejected are equal"):
        runner.run(replace(request, out=tmp_path / "other", overrides=TWO_STEPS | {"data.on_bad": "stop"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs.pairs_per_step": "65"}, r"pairs \(64 usable\) must be at least pairs.pairs_per_step \(65\)"),
        ({"data.window": "7"}, r"data.window \(7\) is not read for pairs"),
        ({"preference.losses": "dpo"}, r"losses \('dpo'\) must be of sigmoid"),
        ({"preference.reference": "adapter_off"}, r"preference.reference \('adapter_off'\) must have an adapter"),
        ({"pairs.form_share": "2"}, r"pairs.form_share \(2.0\) must be from 0 to 1"),
    ],
)
def test_bad_settings_are_one_line(request_: runner.Request, settings: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        runner.describe(replace(request_, overrides=SHORT | settings))


def test_held_out_pairs_alone_are_refused(request_: runner.Request, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 2)
    with pytest.raises(ConfigError, match="--data must be given beside --eval-data"):
        runner.describe(replace(request_, eval_data=(data,)))
