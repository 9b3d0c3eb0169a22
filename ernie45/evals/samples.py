"""Sample pictures for the demo and the chat page: held-out digits, a scene and a chart that a model answers right.

Knows nothing about training. Pictures are small, one visual token a digit; whoever shows them enlarges them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import DataError
from ernie45.data.answers import is_exact
from ernie45.data.tiny import charts, scenes
from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.strips import StripWriter
from ernie45.engine.llm import LLM
from ernie45.evals.heldout import heldout_digits
from ernie45.evals.tiny import answer
from ernie45.processor import Processor

_CANDIDATES = 40
_INDEX = "samples.json"


def write_samples(model: Path, folder: Path, seed: int = 0) -> list[dict[str, str]]:
    """Write PNG files and samples.json ({file, question, answer, kind} each) into the folder; returns the entries.

    Every answer is what the model says in thinking mode from the very file. The sum is one that it gets wrong without thinking.
    DataError if the model answers no candidate of a kind.
    """
    processor = Processor.from_dir(model)
    llm = LLM.load(model, EngineConfig())
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for kind, make in sample_makers().items():
        rng = Random(f"samples/{seed}/{kind}")
        candidates = [make(rng) for _ in range(_CANDIDATES)]
        chosen = _choose(llm, processor, candidates, direct_fails=kind == "sum")
        if chosen is None:
            raise DataError(f"the model ({model}) answers no sample of kind {kind!r}; train it longer")
        file = f"{kind}.png"
        Image.fromarray(chosen.pictures[0]).save(folder / file, optimize=True)
        entries.append({"file": file, "question": chosen.turn.question, "answer": chosen.turn.answer, "kind": kind})
    (folder / _INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return entries


def sample_makers() -> dict[str, Callable[[Random], Sample]]:
    """What each kind of sample is made by."""
    writer = StripWriter(heldout_digits(), distort=False)

    def strip(num_digits: int, ask: Callable[[list[int]], tuple[str, str]]) -> Callable[[Random], Sample]:
        def make(rng: Random) -> Sample:
            made = writer.strip(rng, num_digits)
            question, expected = ask(made.labels)
            turn = Turn(question=question, reasoning="", answer=expected)
            return Sample(skill="sample", turn=turn, pictures=(made.picture_HWC,))

        return make

    return {
        "sum": strip(3, lambda labels: ("Add the digits.", str(sum(labels)))),
        "read": strip(4, lambda labels: ("What number is shown?", "".join(map(str, labels)))),
        "largest": strip(3, lambda labels: ("What is the largest digit?", str(max(labels)))),
        "scene": scenes.colour_question,
        "chart": charts.total_question,
        "caption": scenes.describe_scene,
    }


def _choose(llm: LLM, processor: Processor, candidates: list[Sample], direct_fails: bool) -> Sample | None:
    """The first candidate answered right; asked alone, as a user will: in a batch, bf16 may round another way."""
    for sample in candidates:
        ((with_thoughts, stopped),) = answer(llm, processor, [sample], True)
        if not (stopped and is_exact(with_thoughts, sample.turn.answer)):
            continue
        if direct_fails:
            ((without, _),) = answer(llm, processor, [sample], False)
            if is_exact(without, sample.turn.answer):
                continue
        return sample
    return None
