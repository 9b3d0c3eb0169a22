"""TRL's side of `bench.posttraining`: trains a model folder in transformers' layout, prints one line of JSON.

Knows nothing about ernie45; it needs trl, transformers and datasets only and may run in another environment.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import torch
import transformers  # pyright: ignore[reportMissingImports]
import trl  # pyright: ignore[reportMissingImports]


class Clock(transformers.TrainerCallback):
    """CPU seconds at the end of each step."""

    def __init__(self) -> None:
        self.at = [time.process_time()]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.at[0] = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.process_time())

    @property
    def steps(self) -> list[float]:
        return [end - start for start, end in zip(self.at, self.at[1:], strict=False)]


def common(task: dict[str, Any]) -> dict[str, Any]:
    """What both trainers are told: no saving, no reporting, fp32, nothing recomputed."""
    return {
        "output_dir": task["out"],
        "max_steps": task["steps"],
        "learning_rate": 1e-4,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


def load(folder: str) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="grouped_mm")
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def sft(task: dict[str, Any]) -> dict[str, Any]:
    """Supervised training on packed conversations; loss on all tokens."""
    model, tokenizer = load(task["model"])
    data = datasets.Dataset.from_list([json.loads(line) for line in Path(task["data"]).read_text().splitlines()])
    args = trl.SFTConfig(
        **common(task), per_device_train_batch_size=1, max_length=task["token_budget"], packing=True, packing_strategy="bfd"
    )
    clock = Clock()
    trainer = trl.SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    trainer.train()
    return {"cpu": clock.steps, "amount": sum(lengths) / len(lengths), "losses": _losses(trainer)}


def grpo(task: dict[str, Any]) -> dict[str, Any]:
    """Group-relative policy optimisation with transformers' own generation."""
    model, tokenizer = load(task["model"])
    prompts = [json.loads(line)["messages"] for line in Path(task["data"]).read_text().splitlines()]
    args = trl.GRPOConfig(
        **common(task),
        per_device_train_batch_size=task["prompts"] * task["group_size"],
        num_generations=task["group_size"],
        max_completion_length=task["max_tokens"],
        temperature=1.0,
        beta=0.0,
    )
    clock = Clock()
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(len(set(one[0]["content"])) % 7) for one in completions],
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry]
    return {"cpu": clock.steps, "amount": task["prompts"] * task["group_size"], "lengths": lengths}


def _losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    found = {"sft": sft, "grpo": grpo}[job["kind"]](job)
    print(json.dumps(found | {"trl": trl.__version__, "transformers": transformers.__version__}))
