"""Supervised training and GRPO against TRL's trainers: same text model with experts, data, precision, one thread, in turns.

Knows nothing about how either side works. Run: `python -m bench.posttraining --trl-python PYTHON [--runs 3] [--steps 6]`.

`--trl-python` names an interpreter with torch, trl 1.16 and datasets; the two sides take turns. Seconds are CPU time of whole
steps (data, generation, forward, backward, optimiser), the first step of each run left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from bench.report import write_result
from bench.shapes import tiny_vl_34m
from ernie45.checkpoint import save_model
from ernie45.checkpoint.convert import convert
from ernie45.data.tiny.vocabulary import tiny_special_tokens
from ernie45.model.multimodal import ErnieModel
from ernie45.recipes import runner
from ernie45.train.storage import read_metrics

TOKEN_BUDGET = 2048
PROMPTS, GROUP_SIZE, MAX_TOKENS = 4, 8, 128
SCHEDULE = {"schedule.warmup_steps": "0", "schedule.decay_steps": "0"}


def make_folder(folder: Path) -> None:
    """The text side of the 34 M shape, random weights, the tiny model's tokenizer; `native` beside it for transformers."""
    config = tiny_vl_34m()
    text = replace(config, vision=None, expert_pools=config.expert_pools[:1], tokens=tiny_special_tokens())
    model = ErnieModel(text, device="cpu")
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder / "ours", processor_files_from="tiny")
    convert(folder / "ours", folder / "native", "native")


def make_conversations(path: Path, count: int) -> None:
    """Conversations of 2 to 24 turns of sums, 40 to 600 tokens."""
    rng = Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            messages = []
            for _ in range(rng.randint(1, 12)):
                a, b = rng.randint(0, 99), rng.randint(0, 99)
                messages += [{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": str(a + b)}]
            file.write(json.dumps({"messages": messages}) + "\n")


def make_prompts(path: Path, count: int) -> None:
    """Sums of ten numbers, about 40 tokens, with their answers."""
    rng = Random(1)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            numbers = [rng.randint(0, 99) for _ in range(10)]
            messages = [{"role": "user", "content": "+".join(map(str, numbers)) + "="}]
            file.write(json.dumps({"messages": messages, "answer": str(sum(numbers))}) + "\n")


def theirs(python: str, task: dict[str, Any]) -> dict[str, Any]:
    """One run of TRL in a process of its own."""
    worker = str(Path(__file__).with_name("posttraining_worker.py"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([python, worker, json.dumps(task)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"TRL's side failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(stage: str, task: dict[str, Any], overrides: dict[str, str]) -> list[dict[str, Any]]:
    """Metrics of each step of one run."""
    out = Path(task["out"])
    request = runner.Request(
        stage=stage,
        recipe="tiny",
        out=out,
        model=task["ours"],
        data=(Path(task["data"]),),
        fresh=True,
        overrides={**SCHEDULE, "schedule.num_steps": str(task["steps"]), "optim.optimizer": "adamw", **overrides},
    )
    assert runner.run(request)
    return read_metrics(out / runner.RUN_FOLDER)


def our_sft(task: dict[str, Any]) -> float:
    """Tokens a CPU second."""
    settings = {"data.token_budget": str(TOKEN_BUDGET), "data.loss_on": "all", "data.weighting": "mean", "loop.num_shards": "1"}
    entries = ours("sft", task, settings)[1:]
    return sum(_tokens(entry) for entry in entries) / sum(entry["cpu_seconds"] for entry in entries)


def _tokens(entry: dict[str, Any]) -> float:
    return sum(value for name, value in entry.items() if name in ("tokens_text", "tokens_vision"))


def our_grpo(task: dict[str, Any]) -> float:
    """Answers a CPU second, rollout and update."""
    settings = {
        "rollout.prompts": str(PROMPTS),
        "rollout.group_size": str(GROUP_SIZE),
        "rollout.max_tokens": str(MAX_TOKENS),
        "rollout.thinking": "off",
        "rollout.context": "512",
        "prompts.drop_equal": "false",
        "loop.num_shards": "1",
    }
    entries = ours("rlvr", task, settings)[1:]
    return PROMPTS * GROUP_SIZE * len(entries) / sum(entry["cpu_seconds"] for entry in entries)


KINDS = {"sft": (our_sft, "SFT, packed, tokens"), "grpo": (our_grpo, "GRPO end to end, answers")}


def compare(kind: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, object], str]:
    """One row of the table, and the peer's versions."""
    measure, title = KINDS[kind]
    task = {"kind": kind, "steps": args.steps, "token_budget": TOKEN_BUDGET, "prompts": PROMPTS, "group_size": GROUP_SIZE}
    task |= {"max_tokens": MAX_TOKENS, "data": str(folder / f"{kind}.jsonl"), "model": str(folder / "native")}
    task |= {"ours": str(folder / "ours")}
    found: dict[str, list[float]] = {"theirs": [], "ours": []}
    versions = ""
    for index in range(args.runs):
        peer = theirs(args.trl_python, task | {"out": str(folder / f"trl-{kind}-{index}")})
        found["theirs"].append(peer["amount"] * len(peer["cpu"][1:]) / sum(peer["cpu"][1:]))
        found["ours"].append(measure(task | {"out": str(folder / f"{kind}-{index}")}))
        versions = f"trl {peer['trl']}, transformers {peer['transformers']}"
    their, our = (statistics.median(found[side]) for side in ("theirs", "ours"))
    row = {"what": f"{title} / CPU-s", "TRL": round(their, 2), "ernie45": round(our, 2), "ratio": round(our / their, 2)}
    print(row, {side: [round(value, 2) for value in values] for side, values in found.items()})
    return row, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trl-python", required=True, help="an interpreter that has torch, trl and datasets")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", choices=tuple(KINDS), help="one of the two")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder)
        make_conversations(folder / "sft.jsonl", 400)
        make_prompts(folder / "grpo.jsonl", 200)
        found = [compare(kind, folder, args) for kind in KINDS if args.only in (None, kind)]
    if not args.dry_run:
        notes = [
            f"{found[0][1]} with `grouped_mm` experts; medians of {args.runs} runs of {args.steps} steps in turns, the first "
            "step left out",
            "model: the text side of the 34 M shape (`bench/shapes.py`), random weights, fp32, AdamW, one thread each",
            f"SFT: conversations of 40 to 600 tokens, packed to {TOKEN_BUDGET}, loss on all tokens, nothing recomputed",
            f"GRPO: {PROMPTS} prompts x {GROUP_SIZE} answers of {MAX_TOKENS} tokens; TRL with transformers' own generation",
        ]
        print(write_result("posttraining", "Training against TRL", [row for row, _ in found], notes=notes))


if __name__ == "__main__":
    main()
