"""Tools of others against a real server, each to its end: guidellm, aiperf, lm-eval and schemathesis.

Knows nothing about how the server works. Run: `python -m bench.outsiders --judges FOLDER/bin --aiperf FOLDER/bin/aiperf`. It
ends with 1 if one of them fails, counts an error, or if lm-eval's scores differ from those of the engine in process.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.overhead import text_input
from bench.report import write_result
from bench.servers import our_server
from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.processor.tokenizer import Tokenizer

TOLERANCE = 1e-3
TASK = """\
task: ernie45_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "User: What is {{{{question}}}}?\\nAssistant: <think>\\n\\n</think>\\n\\n"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@dataclass(frozen=True)
class Setting:
    """Where the tools and the server are, and how much they do."""

    judges: Path
    aiperf: Path
    url: str
    model: str
    out: Path
    requests: int
    cases: int


def run(command: Sequence[str], **environment: str) -> tuple[str, float]:
    """Run a tool to its end; what it printed and the seconds. AssertionError if it fails."""
    began = time.perf_counter()
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr, time.perf_counter() - began


def guidellm(setting: Setting) -> tuple[list[str], str]:
    path = setting.out / "guidellm.json"
    command = [str(setting.judges / "guidellm"), "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={setting.url},model=tiny,request_format=/v1/chat/completions"]
    command += ["--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={setting.requests}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={setting.model}"]
    command += ["--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"]
    command += ["--data", "kind=synthetic_image,width=112,height=112", "--output", f"kind=json,path={path}"]
    run(command)
    totals = json.loads(path.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (setting.requests, 0), totals
    return command, f"{totals['successful']} requests with a picture each, {totals['errored']} errors"


def aiperf(setting: Setting) -> tuple[list[str], str]:
    command = [str(setting.aiperf), "profile", "--model", "tiny", "--url", setting.url, "--endpoint-type", "chat"]
    command += ["--streaming", "--concurrency", "4", "--request-count", str(setting.requests), "--ui", "none"]
    command += ["--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "16", "--tokenizer", setting.model]
    command += ["--output-artifact-dir", str(setting.out / "aiperf")]
    run(command, HF_HUB_OFFLINE="")  # offline it takes a tokenizer's folder for a name
    found = json.loads(next((setting.out / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    count, errors = found["request_count"]["avg"], (found.get("error_request_count") or {"avg": 0})["avg"]
    assert (count, errors) == (setting.requests, 0), found.get("error_summary")
    return command, f"{count:.0f} requests, {errors:.0f} errors"


def lm_eval(setting: Setting) -> tuple[list[str], str]:
    """Scores of choices; each must be what the engine in process says of the same tokens."""
    rng = np.random.default_rng(0)
    with (setting.out / "sums.jsonl").open("w") as file:
        for first, second in rng.integers(1, 50, (setting.requests, 2)).tolist():
            choices = [str(first + second + wrong) for wrong in (0, 1, 10, -2)]
            print(json.dumps({"question": f"{first}+{second}", "choices": choices, "answer": 0}), file=file)
    (setting.out / "sums.yaml").write_text(TASK.format(data=setting.out / "sums.jsonl"))
    address = f"model=tiny,base_url={setting.url}/v1/completions,tokenizer={setting.model},num_concurrent=4,max_retries=1"
    command = [str(setting.judges / "lm-eval"), "run", "--model", "local-completions", "--model_args", address]
    command += ["--tasks", "ernie45_sums", "--include_path", str(setting.out), "--output_path", str(setting.out / "lm-eval")]
    command += ["--log_samples"]
    run(command, HF_HOME=str(setting.out / "hf"))
    samples = next((setting.out / "lm-eval").rglob("samples_*.jsonl")).read_text().splitlines()
    pairs, scores = [], []
    for sample in map(json.loads, samples):
        pairs += [(call["arg_0"], call["arg_1"]) for call in sample["arguments"].values()]
        scores += [float(response[0][0]) for response in sample["resps"]]
    assert len(scores) == 4 * setting.requests, len(scores)
    difference = float(np.abs(np.array(scores) - offline_scores(setting.model, pairs)).max())
    assert difference < TOLERANCE, f"scores differ by {difference} from those of the engine in process"
    return command, f"{len(scores)} scores, which differ by {difference:.1e} at most from the engine's in process"


def offline_scores(model: str, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Log-probability of each continuation behind its context, as lm-eval cuts them into tokens."""
    tokenizer = Tokenizer.from_dir(Path(model))
    llm = LLM.load(model, EngineConfig(dtype="float32"))
    whole = [tokenizer.encode(context + more, allow_special=True) for context, more in pairs]
    starts = [len(tokenizer.encode(context, allow_special=True)) for context, _ in pairs]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    done = llm.generate([text_input(ids) for ids in whole], params)
    scores = []
    for completion, start in zip(done, starts, strict=True):
        assert completion.prompt_logprobs is not None
        scores.append(sum(item.logprob for item in completion.prompt_logprobs[start:] if item is not None))
    llm.close()
    return np.array(scores)


def schemathesis(setting: Setting) -> tuple[list[str], str]:
    """The project's own test with more cases: everything but the model is real there."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/server/test_openapi.py", "-k", "requests_made_from_the_document"]
    run(command, ERNIE45_SCHEMATHESIS_CASES=str(setting.cases))
    told = [f"ERNIE45_SCHEMATHESIS_CASES={setting.cases}", *command]
    return (
        told,
        f"{setting.cases} cases of each operation, and as many wrong ones of each with a body: no 5xx, all as documented",
    )


TOOLS = {"guidellm": guidellm, "aiperf": aiperf, "lm-eval": lm_eval, "schemathesis": schemathesis}


def use(name: str, setting: Setting) -> dict[str, object]:
    """One tool's row."""
    began = time.perf_counter()
    try:
        command, outcome = TOOLS[name](setting)
    except AssertionError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {"tool": name, "command": "", "seconds": time.perf_counter() - began, "outcome": "FAILED"}
    shown = shlex.join(command).replace(str(setting.out), "OUT").replace(setting.model, "MODEL").replace("|", "\\|")
    for place in (setting.judges, setting.aiperf.parent, Path(sys.executable).parent):
        shown = shown.replace(f"{place}/", "")
    return {"tool": name, "command": f"`{shown}`", "seconds": time.perf_counter() - began, "outcome": outcome}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--judges", type=Path, required=True, help="folder with the commands guidellm and lm-eval")
    parser.add_argument("--aiperf", type=Path, required=True, help="the command aiperf")
    parser.add_argument("--only", choices=TOOLS, nargs="+", default=list(TOOLS))
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--cases", type=int, default=200, help="schemathesis: of each operation and mode")
    parser.add_argument("--port", type=int, default=18360)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    model = str(resolve_model("tiny"))
    with tempfile.TemporaryDirectory() as out, our_server("tiny", args.port, "--dtype", "float32") as server:
        setting = Setting(args.judges, args.aiperf, server.url, model, Path(out), args.requests, args.cases)
        rows = []
        for name in args.only:
            rows.append(use(name, setting))
            print(*rows[-1].values(), sep="\n  ", flush=True)
    if not args.dry_run:
        notes = [
            "the shipped model; MODEL is its folder, OUT a new one; schemathesis runs against a server with a made-up engine"
        ]
        print(write_result("outsiders", "Tools of others", rows, notes=notes))
    return 1 if any(row["outcome"] == "FAILED" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
