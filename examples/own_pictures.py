"""Teach the tiny model to name patterns it has never seen: your own pictures, from a folder to a model you can talk to.

    python examples/own_pictures.py            the whole model, about a minute on one core
    python examples/own_pictures.py --lora     a LoRA adapter of rank 16 instead

1 draws a folder of small pictures with labels, 2 writes the two files that training takes, 3 trains, 4 scores pictures that it
was not trained on, before and after. With pictures of your own begin at step 2: one line a picture.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from ernie45 import LLM, SamplingParams
from ernie45.checkpoint.convert import Target
from ernie45.checkpoint.merge import merge
from ernie45.config.engine import EngineConfig
from ernie45.recipes.runner import Request, run

SIDE = 56
QUESTION = "Which pattern is it?"
LORA = {"lora.rank": "16", "lora.alpha": "32", "lora.targets": "all", "optim.lr": "0.003"}


def wave(rng: Random, angle: float, period: float) -> np.ndarray:
    """Light and dark bands across a direction, [SIDE, SIDE] in 0 ... 1."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 6.28)) * 0.5 + 0.5


def ink(rng: Random, name: str) -> np.ndarray:
    """A pattern, [SIDE, SIDE] in 0 ... 1, each time another."""
    y, x = np.mgrid[:SIDE, :SIDE]
    period, tilt = rng.uniform(9, 18), rng.uniform(-0.2, 0.2)
    if name == "rows":
        return wave(rng, np.pi / 2 + tilt, period) > 0.5
    if name == "columns":
        return wave(rng, tilt, period) > 0.5
    if name == "slopes":
        return wave(rng, np.pi / 4 + tilt, period) > 0.5
    if name == "checks":
        return (wave(rng, tilt, period) > 0.5) ^ (wave(rng, np.pi / 2 + tilt, period) > 0.5)
    if name == "dots":
        return wave(rng, tilt, period) * wave(rng, np.pi / 2 + tilt, period) > 0.45
    if name == "rings":
        centre_x, centre_y = rng.uniform(18, 38), rng.uniform(18, 38)
        return np.sin(np.hypot(x - centre_x, y - centre_y) * 2 * np.pi / period) > 0
    if name == "fog":
        return wave(rng, rng.uniform(0, 6.28), 90) * wave(rng, rng.uniform(0, 6.28), 70)
    assert name == "grain", name
    return np.random.default_rng(rng.getrandbits(32)).random((SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1)


NAMES = ("rows", "columns", "slopes", "checks", "dots", "rings", "fog", "grain")


def draw(rng: Random, name: str) -> Image.Image:
    """A picture of a pattern in two colours, with a little noise."""
    dark, light = (np.array([rng.uniform(low, high) for _ in range(3)]) for low, high in ((0, 110), (145, 255)))
    if rng.random() < 0.5:
        dark, light = light, dark
    mask = ink(rng, name).astype(float)[:, :, None]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 8, (SIDE, SIDE, 3))
    return Image.fromarray((dark * (1 - mask) + light * mask + noise).clip(0, 255).astype(np.uint8))


def write_data(folder: Path, name: str, count: int, seed: int) -> Path:
    """Pictures in a folder, and a file with one conversation a line. Picture paths are relative to the file."""
    rng = Random(seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        label = NAMES[number % len(NAMES)]
        picture = f"{name}/{number:04d}-{label}.png"
        draw(rng, label).save(folder / picture)
        question = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}
        lines.append({"messages": [question, {"role": "assistant", "content": label}]})
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def score(model: str | Path, file: Path) -> float:
    """Share of a file's pictures that the model names exactly right."""
    llm = LLM(model, EngineConfig(max_num_seqs=32))
    records = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    questions = [
        [{"role": "user", "content": [{"type": "image", "image": file.parent / part["image"]}, text]}]
        for (part, text) in (messages[0]["content"] for messages in records)
    ]
    answers = llm.chat(questions, SamplingParams(max_tokens=12, temperature=0), enable_thinking=False)
    return sum(a.text.strip() == messages[1]["content"] for a, messages in zip(answers, records, strict=True)) / len(records)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the run (runs/patterns, runs/patterns-lora)")
    parser.add_argument("--lora", action="store_true", help="train an adapter, leave the model alone")
    parser.add_argument("--pictures", type=int, default=800, help="to train on (800)")
    parser.add_argument("--test-pictures", type=int, default=160, help="to score on (160)")
    parser.add_argument("--steps", type=int, help="of training (200; an adapter needs 400)")
    args = parser.parse_args(argv)
    out = args.out or Path("runs/patterns-lora" if args.lora else "runs/patterns")
    train = write_data(out / "pictures", "train", args.pictures, seed=1)
    test = write_data(out / "pictures", "test", args.test_pictures, seed=2)
    print(f"{train} and {test} are written; before training: {score('tiny', test):.0%} right", flush=True)

    settings = {"schedule.num_steps": str(args.steps or (400 if args.lora else 200))} | (LORA if args.lora else {})
    request = Request(stage="sft", recipe="tiny", model="tiny", data=(train,), eval_data=(test,), out=out, overrides=settings)
    if not run(request):
        print("stopped; the same command goes on")
        return
    model = out
    if args.lora:
        model = out / "merged"
        shutil.rmtree(model, ignore_errors=True)
        merge("tiny", out, Target(model, "pt"))
        print(f"the adapter is {out}; serve it beside the model: ernie45 serve tiny --lora-modules mine={out}")
    print(f"after training: {score(model, test):.0%} right")
    picture = next((out / "pictures" / "test").glob("*.png"))
    print(f'talk to it: ernie45 chat --model {model} --no-thinking --image {picture} "{QUESTION}"')


if __name__ == "__main__":
    main()
