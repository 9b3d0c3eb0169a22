"""Held-out scores of the tiny model: exact match by skill, in both answer forms, through the engine.

Knows nothing about training. Pictures are made of held-out digits, scenes and charts of a seed that training never uses.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import DataError
from ernie45.config.sampling import SamplingParams
from ernie45.data.tiny.mixture import SCORED_SKILLS, makers
from ernie45.data.tiny.sample import Sample
from ernie45.data.tiny.strips import StripWriter
from ernie45.engine.llm import LLM
from ernie45.engine.request import Completion
from ernie45.evals.heldout import heldout_digits
from ernie45.processor import Processor

MAX_TOKENS = 96
TITLES = {
    "read": "read a strip of 2 to 4 digits",
    "sum2": "sum of 2 digits",
    "sum3": "sum of 3 digits",
    "sum4": "sum of 4 digits",
    "compare": "compare digits and numbers",
    "colour": "scene: colour",
    "count": "scene: count",
    "place": "scene: left, right, above, below",
    "chart_value": "bar chart: one bar",
    "chart_highest": "bar chart: the highest",
    "chart_total": "bar chart: total",
    "caption": "captions",
    "arithmetic": "text: arithmetic",
    "sentence": "text: sentences",
}


@dataclass(frozen=True, kw_only=True)
class SkillScore:
    """Shares from 0 to 1 of `num_prompts` greedy answers: exactly right, and ended by a stop token (not cut off)."""

    thinking: float
    direct: float
    thinking_stopped: float
    direct_stopped: float
    num_prompts: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores of a model by skill, in the order of `SCORED_SKILLS`."""

    model: str
    seed: int
    skills: dict[str, SkillScore]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Console | None = None) -> None:
        """A table: percent right in both answer forms, and how many answers ended by themselves."""
        any_skill = next(iter(self.skills.values()))
        table = Table(title=f"{self.model}: held-out scores, {any_skill.num_prompts} prompts each, percent, greedy")
        table.add_column("skill")
        for column in ("thinking", "direct", "stopped (thinking)", "stopped (direct)"):
            table.add_column(column, justify="right")
        for skill, score in self.skills.items():
            shares = (score.thinking, score.direct, score.thinking_stopped, score.direct_stopped)
            table.add_row(TITLES[skill], *(f"{100 * share:.1f}" for share in shares))
        (console or Console()).print(table)


def evaluate(
    model: str | Path,
    num_prompts: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    skills: Sequence[str] = SCORED_SKILLS,
) -> Report:
    """Scores of a model folder, or of `tiny`. Equal arguments give equal prompts.

    num_prompts: a skill and answer form. progress: told (answers so far, answers in all). DataError for an unknown skill.
    """
    folder = resolve_model(model)
    llm = LLM.load(folder, EngineConfig(max_num_seqs=64, max_num_batched_tokens=4096))
    return score(
        llm, Processor.from_dir(folder), heldout_samples(num_prompts, seed, skills), progress, name=str(model), seed=seed
    )


def score(
    llm: LLM,
    processor: Processor,
    samples: dict[str, list[Sample]],
    progress: Callable[[int, int], None] | None = None,
    **about: Any,
) -> Report:
    """Scores on given samples by skill. about: name and seed for the report."""
    total, done = 2 * sum(map(len, samples.values())), 0
    skills = {}
    for skill, items in samples.items():
        shares = []
        for thinking in (True, False):
            answers = answer(llm, processor, items, thinking)
            right = [is_right(text, item.turn.answer) for (text, _), item in zip(answers, items, strict=True)]
            shares.append((sum(right) / len(items), sum(stopped for _, stopped in answers) / len(items)))
            done += len(items)
            if progress is not None:
                progress(done, total)
        (thinking_right, thinking_stopped), (direct_right, direct_stopped) = shares
        skills[skill] = SkillScore(
            thinking=thinking_right,
            direct=direct_right,
            thinking_stopped=thinking_stopped,
            direct_stopped=direct_stopped,
            num_prompts=len(items),
        )
    return Report(model=about["name"], seed=about["seed"], skills=skills)


def heldout_samples(num_prompts: int, seed: int, skills: Sequence[str] = SCORED_SKILLS) -> dict[str, list[Sample]]:
    """Questions by skill; digits are held out and shown as they were written, without distortion."""
    known = makers(StripWriter(heldout_digits(), distort=False))
    unknown = sorted(set(skills) - set(SCORED_SKILLS))
    if unknown:
        raise DataError(f"skill ({unknown[0]!r}) must be one of {', '.join(SCORED_SKILLS)}")
    rngs = {skill: Random(f"held out/{seed}/{skill}") for skill in skills}
    return {skill: [known[skill](rngs[skill]) for _ in range(num_prompts)] for skill in skills}


def answer(llm: LLM, processor: Processor, samples: Sequence[Sample], thinking: bool) -> list[tuple[str, bool]]:
    """The answers after the thoughts, and whether each ended by a stop token."""
    inputs = [processor.encode_chat(sample.prompt_messages(), enable_thinking=thinking) for sample in samples]
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop_token_ids=processor.stop_token_ids)
    completions: list[Completion] = llm.generate(inputs, params)
    texts = [processor.tokenizer.decode(completion.token_ids) for completion in completions]
    return [
        (_after_thoughts(text, thinking), completion.finish_reason == "stop")
        for text, completion in zip(texts, completions, strict=True)
    ]


def is_right(text: str, expected: str) -> bool:
    """Exact match, white space at the ends apart."""
    return text.strip() == expected.strip()


def _after_thoughts(text: str, thinking: bool) -> str:
    """What follows </think>; nothing if the thoughts never ended."""
    if not thinking:
        return text
    parts = re.split(r"</think>", text, maxsplit=1)
    return parts[1] if len(parts) == 2 else ""
