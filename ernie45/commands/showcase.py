"""What `ernie45 demo` shows: one of the sample pictures, its question, and the answer with and without thinking.

Knows nothing about servers.
"""

import json
import sys
from typing import Any

from ernie45.commands.picture import render
from ernie45.commands.terminal import Terminal
from ernie45.config.presets import TINY_FOLDER
from ernie45.processor.media import load_image

SAMPLES = TINY_FOLDER.parent / "samples"
# Sums need two readings and an addition: there a thought helps most.
_KIND = "sum"


def show_sample() -> None:
    """Print picture, question and both answers to stdout."""
    terminal = Terminal.of(sys.stdout)
    sample = first_sample(_KIND)
    path = SAMPLES / sample["file"]
    print(render(load_image(path), terminal))
    print(f"\n{terminal.bold(sample['question'])}\n", flush=True)

    # Only now, so that there is something to look at while torch is loaded.
    from ernie45.commands.conversation import Conversation, Settings
    from ernie45.commands.dialogue import show_answer

    conversation = Conversation.load("tiny", Settings())
    for thinking in (True, False):
        conversation.clear()
        conversation.set_thinking(thinking)
        print(terminal.dimmed("-- thinking --" if thinking else "-- without thinking --"))
        show_answer(conversation.ask(sample["question"], [path]), terminal, sys.stdout, sys.stdout)
        print(terminal.dimmed(f"({conversation.usage})") + "\n")
    print(f"The right answer is {sample['answer']}. The digits are handwritten and were not in the training data.\n")


def first_sample(kind: str) -> dict[str, Any]:
    """The first sample of that kind, or the first of all."""
    samples = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return next((sample for sample in samples if sample["kind"] == kind), samples[0])
