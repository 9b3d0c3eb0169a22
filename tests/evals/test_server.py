"""A server is scored like the model behind it; lm-eval's command is run against it, and its results are read."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ernie45 import cli
from ernie45.checkpoint import resolve_model
from ernie45.config.errors import ConfigError, DataError
from ernie45.data.chat_api import ChatApi
from ernie45.evals import lm_eval
from ernie45.evals.answerers import EngineAnswerer, Sampling, ServerAnswerer
from ernie45.evals.lm_eval import LmEval, arguments, find_command, read_results, run_lm_eval
from ernie45.evals.run import Settings, run
from ernie45.evals.tasks import builtin_tasks

# Stands for lm-eval's command: asks the address it is given and writes what the real one writes.
FAKE = """#!{python}
import json, os, pathlib, sys, urllib.request
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if words["--tasks"] == "broken":
    sys.exit("no such task: broken")
args = dict(pair.split("=", 1) for pair in words["--model_args"].split(","))
chat = args["base_url"].endswith("/chat/completions")
body = {{"model": args["model"], "max_tokens": 3, "temperature": 0}}
body |= {{"messages": [{{"role": "user", "content": "1+1?"}}]}} if chat else {{"prompt": "1+1"}}
request = urllib.request.Request(args["base_url"], json.dumps(body).encode(), {{"content-type": "application/json"}})
used = json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"]
out = pathlib.Path(words["--output_path"], "tiny")
out.mkdir()
scores = {{"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 0.25, "tokens,none": used}}
(out / "results_1.json").write_text(json.dumps({{"results": {{words["--tasks"]: scores}}}}))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with lm_eval.our_server(str(resolve_model("tiny"))) as url:
        yield url


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lm-eval"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(lm_eval.sys, "executable", str(tmp_path / "python"))  # not beside the running one
    return path


def test_a_server_scores_as_its_model_does(address: str) -> None:
    """Greedy, thinking and not, with pictures; answers equal, except where bf16 sums of another batch turn one."""
    tasks = builtin_tasks(["arithmetic", "sum2"], 8, seed=3)
    server, engine = ServerAnswerer(ChatApi(address)), EngineAnswerer.load("tiny")
    asked = Settings(sampling=Sampling(max_tokens=96))
    try:
        over_http, direct = run(server, tasks, asked), run(engine, tasks, asked)
    finally:
        server.close()
        engine.close()
    assert over_http.skipped == {}
    pairs = list(zip(over_http.answers, direct.answers, strict=True))
    same = [all(one[key] == other[key] for key in ("answer", "thoughts", "finished", "value")) for one, other in pairs]
    assert len(same) == 32
    assert sum(same) >= 30, [pair for pair, equal in zip(pairs, same, strict=True) if not equal]


def test_the_command_line_asks_a_server(address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"messages": [{"role": "user", "content": "What is 47+12?"}], "answer": "59.0"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ["eval", "--server", address, "--data", str(file), "--reward", "numeric", "--thinking", "on", "--json"]
    assert cli.main([*words, "--answers", str(tmp_path / "answers.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    [row] = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert found["tasks"]["data"]["thinking"]["score"] == row["value"]
    assert row["value"] == float(row["answer"] == "59")
    assert cli.main(["eval", "--server", "http://127.0.0.1:9/v1"]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert cli.main(["eval", "--server", address, "--server-model", "huge"]) == 2
    assert "model ('huge') must be one of those" in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_lm_eval_runs_against_a_server(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for chat in ([], ["--lm-eval-chat"]):
        assert cli.main(["eval", "--server", address, "--lm-eval", "gsm8k", "--markdown", *chat]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "| gsm8k | acc | 0.5000 |" in lines
        assert "| gsm8k | exact_match (strict) | 0.2500 |" in lines
        assert "| gsm8k | tokens | 3.0000 |" in lines  # it did ask the server
    with pytest.raises(DataError, match="lm-eval ended with 1: no such task: broken"):
        run_lm_eval("", LmEval(tasks="broken"), address, "tiny")


def test_lm_eval_is_told_what_it_needs(tmp_path: Path) -> None:
    wanted = LmEval(tasks="a,b", options=("--limit", "5"))
    words = arguments(wanted, "http://h/v1", "tiny", "/models/tiny", tmp_path)
    assert words[1] == "local-completions"
    assert words[3] == "model=tiny,base_url=http://h/v1/completions,num_concurrent=16,max_retries=3,tokenizer=/models/tiny"
    assert words[-2:] == ["--limit", "5"]
    chat = arguments(LmEval(tasks="a", chat=True), "http://h/v1", "tiny", "/models/tiny", tmp_path)
    assert "tokenizer" not in chat[3]
    assert "--apply_chat_template" in chat
    with pytest.raises(DataError, match="no results"):
        read_results({"results": {}})


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(lm_eval.sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match=r"pip install .lm-eval\[api\]"):
        find_command()


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho no port is free\nexit 2\n")
    path.chmod(0o755)
    monkeypatch.setattr(lm_eval.sys, "executable", str(path))
    with pytest.raises(ConfigError, match="the server did not start: no port is free"), lm_eval.our_server(str(tmp_path)):
        raise AssertionError
