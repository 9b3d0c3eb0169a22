"""Held-out scores of the tiny model: exact match by skill, in both answer forms, through the engine.

Knows nothing about training. Pictures are made of held-out digits, scenes and charts of a seed that training never uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from ernie45.config.errors import DataError
from ernie45.data.tiny.mixture import SCORED_SKILLS, makers
from ernie45.data.tiny.sample import Sample
from ernie45.data.tiny.strips import StripWriter
from ernie45.engine.llm import LLM
from ernie45.evals.answerers import EngineAnswerer, Sampling
from ernie45.evals.heldout import heldout_digits
from ernie45.evals.run import Question, Settings, Task, TaskScore, run
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
    answerer = EngineAnswerer.load(model)
    try:
        return _report(answerer, heldout_samples(num_prompts, seed, skills), progress, seed)
    finally:
        answerer.close()


def score(
    llm: LLM,
    processor: Processor,
    samples: dict[str, list[Sample]],
    progress: Callable[[int, int], None] | None = None,
    **about: Any,
) -> Report:
    """Scores on given samples by skill. about: name and seed for the report."""
    return _report(EngineAnswerer(llm, processor, about["name"]), samples, progress, about["seed"])


def tasks(samples: dict[str, list[Sample]]) -> list[Task]:
    """The skills as tasks, graded by exact match."""
    return [
        Task(
            name=skill,
            title=TITLES[skill],
            questions=[Question(messages=item.prompt_messages(), reference=item.turn.answer) for item in items],
        )
        for skill, items in samples.items()
    ]


def _report(
    answerer: EngineAnswerer,
    samples: dict[str, list[Sample]],
    progress: Callable[[int, int], None] | None,
    seed: int,
) -> Report:
    result = run(answerer, tasks(samples), Settings(sampling=Sampling(max_tokens=MAX_TOKENS)), progress)
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        raise DataError(f"skill ({name!r}) cannot be scored: {reason}; choose among those of text, arithmetic and sentence")

    def share(found: TaskScore) -> float:
        return found.score.mean if found.score else 0.0

    skills = {
        skill: SkillScore(
            thinking=share(forms["thinking"]),
            direct=share(forms["direct"]),
            thinking_stopped=forms["thinking"].stopped,
            direct_stopped=forms["direct"].stopped,
            num_prompts=len(samples[skill]),
        )
        for skill, forms in result.scores.items()
    }
    return Report(model=answerer.name, seed=seed, skills=skills)


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
    conversations = [sample.prompt_messages() for sample in samples]
    said = EngineAnswerer(llm, processor, "").answer(conversations, thinking, Sampling(max_tokens=MAX_TOKENS))
    return [(one.answer.answer, one.answer.finished) if one.answer else ("", False) for [one] in said]
