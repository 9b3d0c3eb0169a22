"""Reinforcement learning from a table of questions and answers: no thoughts to copy, only answers that can be checked.

    python examples/questions_csv.py        about five minutes on one core

1 writes a CSV of questions with their answers, 2 lets the tiny model answer each of them several times and learn from what was
right (GRPO), 3 scores questions that it was not trained on, before and after. With a table of your own begin at step 2: columns
`question` and `answer`; what judges an answer is `--set rewards.spec=...` (exact, numeric, math, choice, ...; docs/rewards.md).
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from random import Random

from ernie45 import LLM, SamplingParams
from ernie45.config.engine import EngineConfig
from ernie45.recipes.runner import Request, run

SETTINGS = {"rewards.spec": "exact", "rollout.max_tokens": "48", "schedule.warmup_ratio": "0.05"}


def write_table(file: Path, count: int, seed: int) -> Path:
    """Sums and differences of two numbers below a hundred; tables of different seeds share no question."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    Random(0).shuffle(pairs)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["question", "answer"])
        for number, (a, b) in enumerate(pairs[seed::3][:count]):
            first, second = max(a, b), min(a, b)
            is_sum = number % 2 == 0
            table.writerow([f"What is {a}+{b}?", a + b] if is_sum else [f"What is {first}-{second}?", first - second])
    return file


def score(model: str | Path, file: Path) -> float:
    """Share of a table's questions that the model answers exactly right, with thoughts."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    llm = LLM(model, EngineConfig(max_num_seqs=64))
    conversations = [[{"role": "user", "content": row["question"]}] for row in rows]
    answers = llm.chat(conversations, SamplingParams(max_tokens=64, temperature=0), enable_thinking=True)
    return sum(answer.text.strip() == row["answer"] for answer, row in zip(answers, rows, strict=True)) / len(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/questions"), help="folder of the run (runs/questions)")
    parser.add_argument("--questions", type=int, default=1500, help="to learn from (1500)")
    parser.add_argument("--test-questions", type=int, default=400, help="to score on (400)")
    parser.add_argument("--steps", type=int, default=60, help="of training (60)")
    args = parser.parse_args(argv)
    train = write_table(args.out / "train.csv", args.questions, seed=0)
    test = write_table(args.out / "test.csv", args.test_questions, seed=1)
    print(f"{train} and {test} are written; before training: {score('tiny', test):.1%} right", flush=True)

    settings = {"schedule.num_steps": str(args.steps)} | SETTINGS
    request = Request(stage="rlvr", recipe="tiny", model="tiny", data=(train,), out=args.out, overrides=settings)
    if not run(request):
        print("stopped; the same command goes on")
        return
    print(f"after training: {score(args.out, test):.1%} right")
    print(f'talk to it: ernie45 chat --model {args.out} --thinking "What is 85-27?"')


if __name__ == "__main__":
    main()
