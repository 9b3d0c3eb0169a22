"""Serving against `transformers serve`: the same weights, type and threads, judged by guidellm at several numbers of streams.

Knows nothing about how either serves. Run: `python -m bench.serving --judges FOLDER/bin [--streams 1 8 32] [--plot]`.

guidellm and transformers[serving] may live in another environment, whose folder of commands is `--judges`. Three shapes: text
and one picture a request with the VL model, which transformers serves one request after the other (it says that the class does
not support continuous batching), and text with its text-only sibling, with transformers' continuous batching. Each server has
the machine for itself while it is judged. A level ends after so many requests or seconds, whichever comes first: what the
slower side has not finished then is left out, to its advantage in latency.
"""

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch

from bench.clients import post
from bench.report import write_result
from bench.servers import Server, our_server, peer_server
from bench.serving_model import make_folder, serving_config

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LEAST_SPEEDUP, MOST_TTFT = 5.0, 0.5
# Greedy on both sides. transformers refuses `ignore_eos`, which guidellm sends unless it is told to send null; with these
# weights the end token is never the likeliest, and what each side generated is in the table.
BODY = {"temperature": 0, "ignore_eos": None}
PICTURE = "kind=synthetic_image,width=224,height=224"


@dataclass(frozen=True)
class Shape:
    """What is asked of both. flags: of transformers."""

    name: str
    text_only: bool
    flags: tuple[str, ...]
    data: tuple[str, ...]


SHAPES = (
    Shape("VL, text", False, (), ("kind=synthetic_text,prompt_tokens=64,output_tokens=32",)),
    Shape("VL, one picture", False, (), ("kind=synthetic_text,prompt_tokens=32,output_tokens=32", PICTURE)),
    Shape("text-only MoE", True, ("--continuous-batching",), ("kind=synthetic_text,prompt_tokens=64,output_tokens=32",)),
)


@dataclass(frozen=True)
class Load:
    """How much is asked: streams at once, one after the other, and when each level ends."""

    streams: list[int]
    requests: int
    seconds: int


def judge(guidellm: Path, server: Server, folder: str, shape: Shape, load: Load) -> list[dict[str, float]]:
    """What guidellm measures at each number of streams, after one answer that does not count (their first is slow)."""
    asyncio.run(warm_up(server, folder))
    backend: dict[str, Any] = {"kind": "openai_http", "target": server.url, "model": folder}
    backend |= {"request_format": "/v1/chat/completions", "extras": {"body": BODY}}
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "result.json"
        command = [str(guidellm), "run", "--backend", json.dumps(backend), "--disable-console"]
        command += ["--profile", f"kind=concurrent,streams={load.streams[0]}"]
        command += ["--override", "profile.streams", ",".join(map(str, load.streams))]
        command += ["--constraint", f"kind=max_requests,count={load.requests}"]
        command += ["--constraint", f"kind=max_duration,seconds={load.seconds}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={folder}", "--output", f"kind=json,path={path}"]
        for data in shape.data:
            command += ["--data", data]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = json.loads(path.read_text())["benchmarks"]
    assert len(found) == len(load.streams), [len(found), load.streams]
    return [numbers(level) for level in found]


async def warm_up(server: Server, folder: str) -> None:
    body = {"model": folder, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    reply = await asyncio.wait_for(post(server.port, "/v1/chat/completions", body), 120)
    assert reply.ok, reply


def numbers(level: dict[str, Any]) -> dict[str, float]:
    """The few numbers that we tell, of guidellm's many; of requests that came to their end."""
    metrics = level["metrics"]
    done = metrics["request_totals"]
    assert not done["errored"], done
    ttft, itl = metrics["time_to_first_token_ms"]["successful"], metrics["inter_token_latency_ms"]["successful"]
    return {
        "requests": done["successful"],
        "rate": metrics["output_tokens_per_second"]["successful"]["mean"],
        "ttft": ttft["median"],
        "itl": itl["median"],
        "length": metrics["output_token_count"]["successful"]["mean"],
    }


def measure(shape: Shape, judges: Path, load: Load, port: int) -> list[dict[str, object]]:
    """Rows of a shape: both sides at each number of streams."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), torch.float32, serving_config(text_only=shape.text_only))
        with our_server(folder, port, "--served-model-name", folder) as server:
            ours = judge(judges / "guidellm", server, folder, shape, load)
        with peer_server(str(judges / "transformers"), folder, port + 1, *shape.flags) as server:
            theirs = judge(judges / "guidellm", server, folder, shape, load)
    rows: list[dict[str, object]] = []
    for streams, our, their in zip(load.streams, ours, theirs, strict=True):
        row: dict[str, object] = {"what": shape.name, "streams": streams}
        for name, key in (("output tokens/s", "rate"), ("TTFT, ms", "ttft"), ("ITL, ms", "itl")):
            row |= {f"{name}, transformers": their[key], f"{name}, ernie45": our[key]}
        # Of a side that finished no request in time, nothing is known but that; its ratios are nan.
        known = bool(our["requests"] and their["requests"])
        row["tokens/s, ratio"] = our["rate"] / their["rate"] if known else float("nan")
        row["TTFT, ratio"] = our["ttft"] / their["ttft"] if known else float("nan")
        row["requests (tokens each)"] = " / ".join(f"{side['requests']:.0f} ({side['length']:.0f})" for side in (their, our))
        rows.append(row)
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return rows


def plot(rows: list[dict[str, Any]]) -> Path:
    """Latency against load: a panel for each shape, a line for each side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    names = list(dict.fromkeys(row["what"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(4 * len(names), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, name in zip(panels[0], names, strict=True):
        chosen = [row for row in rows if row["what"] == name]
        for side, colour in (("transformers", "#888888"), ("ernie45", "#1f6feb")):
            rates = [row[f"output tokens/s, {side}"] for row in chosen]
            waits = [row[f"TTFT, ms, {side}"] for row in chosen]
            panel.plot(rates, waits, "o-", color=colour, label=side)
            for row, rate, wait in zip(chosen, rates, waits, strict=True):
                panel.annotate(f"{row['streams']}", (rate, wait), textcoords="offset points", xytext=(5, 4), fontsize=8)
        panel.set(title=name, xlabel="output tokens/s", xscale="log", yscale="log")
        for axis in (panel.xaxis, panel.yaxis):  # plain numbers; the labels of powers run into each other
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("time to first token, ms (median)")
    panels[0][0].legend()
    figure.suptitle("Latency against load; the numbers are streams at once", fontsize=10)
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / "serving.png"
    figure.savefig(path, dpi=120)
    return path


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which rows with 8 streams or more miss a target."""
    loaded = [row for row in rows if row["streams"] >= 8]
    missed = [f"{row['what']} at {row['streams']}: tokens/s" for row in loaded if row["tokens/s, ratio"] < LEAST_SPEEDUP]
    missed += [f"{row['what']} at {row['streams']}: TTFT" for row in loaded if row["TTFT, ratio"] > MOST_TTFT]
    missed += [
        f"{row['what']} at {row['streams']}: unknown, a side finished nothing" for row in loaded if isnan(row["TTFT, ratio"])
    ]
    return "met" if not missed else "MISSED by " + "; ".join(missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--judges", type=Path, required=True, help="folder with the commands guidellm and transformers")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=48, help="of each level at most")
    parser.add_argument("--seconds", type=int, default=12, help="of each level at most")
    parser.add_argument("--shapes", type=int, nargs="+", choices=range(len(SHAPES)), default=list(range(len(SHAPES))))
    parser.add_argument("--port", type=int, default=18350)
    parser.add_argument("--plot", action="store_true", help="write docs/images/serving.png too")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no result")
    args = parser.parse_args()
    load = Load(args.streams, args.requests, args.seconds)
    rows = [row for index in args.shapes for row in measure(SHAPES[index], args.judges, load, args.port)]
    print("targets:", verdict(rows))
    if args.plot:
        print(plot(rows))
    if not args.dry_run:
        notes = [
            "model: 34 M parameters (`bench/shapes.py`), VL and its text part alone, random fp32 weights, 1 thread, greedy",
            "judge: guidellm, synthetic data: " + "; ".join(f"{shape.name}: {' + '.join(shape.data)}" for shape in SHAPES),
            "peer: `transformers serve`, for the text-only model with `--continuous-batching`; its VL class has none",
            f"a level ends after {args.requests} requests or {args.seconds} s; medians of the requests that came to their end",
            f"targets at 8 and more streams: at least {LEAST_SPEEDUP:g} times the tokens/s, at most {MOST_TTFT:g} of the TTFT: "
            + verdict(rows),
        ]
        print(write_result("serving", "Serving against transformers serve", rows, notes=notes))


if __name__ == "__main__":
    main()
