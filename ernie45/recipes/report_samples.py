"""Answers for a report: what the start of a run and its result say to held-out questions, through the engine.

Knows nothing about pages or metrics.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import Ernie45Error
from ernie45.config.sampling import SamplingParams
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.model import tiny_processor
from ernie45.data.tiny.sample import Sample
from ernie45.engine.llm import LLM
from ernie45.evals.tiny import MAX_TOKENS, answer, heldout_samples
from ernie45.processor import Processor
from ernie45.recipes.report import RunLog

_SKILLS = ("read", "sum3", "compare", "colour", "chart_total", "caption", "arithmetic")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question, and what was said to it. pictures: data addresses. before: None without a start; after: one a run."""

    question: str
    expected: str
    pictures: list[str]
    before: str | None
    after: list[str | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """note: how they came about, or why there are none."""

    rows: list[Answered]
    note: str


def sampled_answers(runs: Sequence[RunLog], num_each: int, thinking: bool = True) -> Answers:
    """num_each greedy answers a skill to held-out questions, by the first run's start and by each result.

    The questions are the built-in tiny tasks: a model with another tokenizer is not asked. A run that is not finished has no
    result yet, and one from nothing has no start.
    """
    if not num_each:
        return Answers(rows=[], note="")
    samples = [one for items in heldout_samples(num_each, 0, _SKILLS).values() for one in items]
    start = runs[0].settings.get("model") or None
    documents = runs[0].settings.get("stage") == "pretrain"
    places = [start, *(str(run.out) for run in runs)]
    said: list[list[str | None]] = []
    for place in places:
        said.append(_answers(place, samples, thinking, documents) or [None] * len(samples))
    if not any(texts[0] is not None for texts in said[1:]):
        return Answers(
            rows=[], note="None: the folder has no finished model, or one with another tokenizer than the built-in tasks have."
        )
    rows = [
        Answered(
            question=one.turn.question,
            expected=one.turn.answer,
            pictures=[_address(picture) for picture in one.pictures],
            before=said[0][place],
            after=[texts[place] for texts in said[1:]],
        )
        for place, one in enumerate(samples)
    ]
    before = f"Start: {start}." if start else "The run began from new weights, which say nothing yet."
    how = "as the beginning of a document, as it was pretrained" if documents else "with thoughts" if thinking else "direct"
    return Answers(rows=rows, note=f"Held-out questions, greedy, {how}. {before}")


def _answers(place: str | None, samples: list[Sample], thinking: bool, documents: bool) -> list[str | None] | None:
    """None for no model, or one with another tokenizer."""
    if place is None:
        return None
    try:
        folder = resolve_model(place)
        processor = Processor.from_dir(folder)
        if len(processor.tokenizer) != len(tiny_processor().tokenizer):
            return None
        llm = LLM.load(folder, EngineConfig(max_num_seqs=16, max_num_batched_tokens=2048))
    except Ernie45Error:
        return None
    if not documents:
        return [text for text, _ in answer(llm, processor, samples, thinking)]
    encoder = SampleEncoder(processor)
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop_token_ids=(processor.tokens.eos,))
    completions = llm.generate([encoder.encode_question(sample) for sample in samples], params)
    return [_last_line(processor.tokenizer.decode(completion.token_ids)) for completion in completions]


def _last_line(text: str) -> str:
    """A document spells out how an answer is found, and ends with it."""
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1]


def _address(picture_HWC: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
