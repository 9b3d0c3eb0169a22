"""Rejection sampling: what is kept is right, differs, and is what training reads; stopped anywhere, the file is the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ernie45 import cli
from ernie45.config.errors import ConfigError
from ernie45.config.rejection import RejectionConfig
from ernie45.config.rewards import RewardsConfig
from ernie45.data.dataset import Dataset
from ernie45.data.records import Record
from ernie45.recipes.rejection import Counts, Job, sample

CONFIG = RejectionConfig(samples=3, keep=2, max_tokens=64, batch=4)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Sums, every fifth of them with a wrong answer, and one line that is no prompt."""
    lines = [{"question": f"What is {n}+{n + 1}?", "answer": str(2 * n + 1 + 100 * (n % 5 == 0))} for n in range(10, 20)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"question": "no answer"}]), encoding="utf-8")
    return Job(model="tiny", prompts=(file,), out=tmp_path / "deep" / "right.jsonl", config=CONFIG, rewards=RewardsConfig())


def test_right_answers_are_kept_and_can_be_trained_on(job: Job) -> None:
    counts = sample(job)
    lines = [json.loads(line) for line in job.out.read_text(encoding="utf-8").splitlines()]
    assert counts == Counts(prompts=10, solved=len({line["sampled"]["prompt"] for line in lines}), kept=len(lines), skipped=1)
    assert 4 <= counts.solved <= 8
    for line in lines:
        question, answer = line["messages"]
        first, second = map(int, question["content"].removeprefix("What is ").rstrip("?").split("+"))
        assert answer["content"] == str(first + second)
        assert answer["reasoning_content"]
    texts = [(line["sampled"]["prompt"], json.dumps(line["messages"][-1])) for line in lines]
    assert len(set(texts)) == len(texts), "no answer twice"
    records = list(Dataset([job.out], (Record,)))
    assert len(records) == len(lines)
    assert all(isinstance(record, Record) and record.thinking for record in records)


def test_stopped_anywhere_the_file_is_the_same(job: Job) -> None:
    sample(job)
    whole = job.out.read_bytes()
    other = replace(job, out=job.out.with_name("other.jsonl"))

    def stop(done: int, total: int, counts: Counts) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(replace(other, progress=stop))
    with other.out.open("a") as file:  # killed in the middle of the next batch
        file.write('{"messages": [{"role"')
    counts = sample(other)
    assert other.out.read_bytes() == whole
    assert counts == sample(other), "a finished file is left as it is"


def test_pictures_keep_their_place_and_thoughts_can_be_left_out(job: Job, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / "black.png")
    line = {"question": "<image>Read the digits.", "images": ["black.png"], "answer": "never"}
    job.prompts[0].write_text(json.dumps(line) + "\n", encoding="utf-8")
    everything = replace(CONFIG, threshold=0.0, thinking="off", keep=1)
    sample(replace(job, config=everything))
    [line] = [json.loads(line) for line in job.out.read_text(encoding="utf-8").splitlines()]
    assert line["messages"][0]["content"][0] == {"type": "image", "image": "../black.png"}
    assert "reasoning_content" not in line["messages"][-1]
    assert line["sampled"]["score"] == 0.0
    assert len(list(Dataset([job.out], (Record,)))) == 1


def test_another_job_is_refused(job: Job) -> None:
    job.out.parent.mkdir()
    job.out.write_text("mine\n")
    with pytest.raises(ConfigError, match="exists and is not of this job"):
        sample(job)
    job.out.unlink()
    sample(job)
    with pytest.raises(ConfigError, match="was begun with another model, other prompts or other settings"):
        sample(replace(job, config=replace(CONFIG, seed=1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 5}, "keep \\(5\\) must be at most samples"),
        ({"temperature": 0.0}, "greedy"),
        ({"samples": 0}, "samples \\(0\\)"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_the_command(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--out", str(job.out), "--samples", "1", "--max-tokens", "64"]
    assert cli.main(["sample", str(job.prompts[0]), *arguments]) == 0
    told = capsys.readouterr()
    assert "of 10 prompts" in told.out
    assert "1 records cannot be used" in told.err
    assert cli.main(["sample", "/nowhere.csv", *arguments]) == 2
