"""Asks a model the questions of tasks, in both answer forms, has the answers graded, and says how sure the scores are.

Knows nothing about who answers, who grades, or how scores are shown.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded, Grader, Score, is_exact
from ernie45.evals.answerers import Answerer, Messages, Said, Sampling
from ernie45.evals.statistics import Interval, bootstrap, interval, pass_at_k

FORMS: dict[str, bool] = {"thinking": True, "direct": False}
_MEDIA = ("image", "image_url", "video", "video_url")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation up to the answer, and what a grader needs to know."""

    messages: Messages
    reference: str
    domain: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def exact(batch: Sequence[Graded]) -> list[Score]:
    """The grader of built-in tasks: exact match, white space at the ends apart."""
    return [Score(value=float(is_exact(item.answer, item.reference or ""))) for item in batch]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions of one kind. title: what a reader sees. grade: gives each answer a value, 1 for right."""

    name: str
    title: str
    questions: Sequence[Question]
    grade: Grader = exact

    @property
    def shows_pictures(self) -> bool:
        """Whether any question has a picture or a video."""
        return any(part.get("type") in _MEDIA for question in self.questions for part in _parts(question.messages))


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Of one task in one answer form.

    values     by question: of its answers that have a score, in order; a question may have none.
    stopped    share of answers that ended by themselves.
    events     why answers have no score, by kind.
    pass_at    k -> mean over questions that have all their scores, of the chance that one of k answers is right (value 1).
    """

    values: list[list[float]]
    num_samples: int
    stopped: float
    events: dict[str, int]
    pass_at: dict[int, float]

    @property
    def means(self) -> list[float | None]:
        """By question, None without a score."""
        return [sum(own) / len(own) if own else None for own in self.values]

    @property
    def score(self) -> Interval | None:
        """Mean over questions, with its interval; None if no answer has a score."""
        known = [mean for mean in self.means if mean is not None]
        return interval(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        score = self.score
        return {
            **({"score": score.mean, "low": score.low, "high": score.high} if score else {"score": None}),
            "num_questions": len(self.values),
            "num_samples": self.num_samples,
            "stopped": self.stopped,
            "events": self.events,
            **({"pass_at": {str(k): share for k, share in self.pass_at.items()}} if self.pass_at else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of one model. scores: task -> form -> score. skipped: task -> why it was not asked. answers: all of them, for a file."""

    model: str
    scores: dict[str, dict[str, TaskScore]]
    skipped: dict[str, str]
    answers: list[dict[str, Any]]
    sampling: Sampling
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """forms: of `FORMS`. pass_at: the k of pass@k, at most as many as samples."""

    forms: tuple[str, ...] = tuple(FORMS)
    sampling: Sampling = field(default_factory=Sampling)
    pass_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for k in self.pass_at:
            if not 1 <= k <= self.sampling.samples:
                raise ConfigError(f"pass-at ({k}) must be from 1 to the number of samples ({self.sampling.samples})")


def run(
    answerer: Answerer,
    tasks: Sequence[Task],
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    at_once: int = 256,
) -> Result:
    """Scores of a model on tasks. at_once: questions that are encoded and asked together.

    A task with pictures is skipped, with the reason, where the model has no vision. progress: told (answers so far, in all).
    """
    start, done = time.monotonic(), 0
    skipped = {task.name: reason for task in tasks if (reason := _why_not(answerer, task))}
    asked = [task for task in tasks if task.name not in skipped]
    total = sum(len(task.questions) for task in asked) * len(settings.forms) * settings.sampling.samples
    scores: dict[str, dict[str, TaskScore]] = {}
    answers: list[dict[str, Any]] = []
    for task in asked:
        scores[task.name] = {}
        for form in settings.forms:
            said: list[list[Said]] = []
            for first in range(0, len(task.questions), at_once):
                some = task.questions[first : first + at_once]
                sampling = replace(settings.sampling, seed=settings.sampling.seed + first * settings.sampling.samples)
                said += answerer.answer([question.messages for question in some], FORMS[form], sampling)
                done += len(some) * settings.sampling.samples
                if progress is not None:
                    progress(done, total)
            graded = _grade(task, said)
            scores[task.name][form] = _score(graded, said, settings)
            answers += _rows(task, form, said, graded)
    return Result(
        model=answerer.name,
        scores=scores,
        skipped=skipped,
        answers=answers,
        sampling=settings.sampling,
        seconds=time.monotonic() - start,
    )


def difference(one: TaskScore, other: TaskScore) -> Interval | None:
    """Mean of one minus other over questions that both have scores for, by paired bootstrap; None without any."""
    pairs = zip(one.means, other.means, strict=True)
    gaps = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return bootstrap(gaps) if gaps else None


def _why_not(answerer: Answerer, task: Task) -> str:
    if not task.shows_pictures:
        return ""
    if answerer.sees_pictures is False:
        return "the model has no vision, and the task shows pictures"
    if answerer.sees_pictures is None:
        # A server: one question tells.
        [[said]] = answerer.answer([task.questions[0].messages], False, Sampling(max_tokens=1))
        if said.error == "refused":
            return f"the server refuses its pictures: {said.detail}"
    return ""


def _grade(task: Task, said: list[list[Said]]) -> list[list[Score]]:
    """Scores by question and answer; an answer that there is not has the event of its error."""
    items = [
        replace(
            one.answer,
            messages=question.messages,
            reference=question.reference,
            domain=question.domain,
            extra=question.extra,
        )
        for question, several in zip(task.questions, said, strict=True)
        for one in several
        if one.answer is not None
    ]
    scores = iter(task.grade(items) if items else [])
    return [
        [next(scores) if one.answer is not None else Score.failed(one.error, one.detail) for one in several] for several in said
    ]


def _score(graded: list[list[Score]], said: list[list[Said]], settings: Settings) -> TaskScore:
    values = [[score.value for score in several if score.value is not None] for several in graded]
    whole = [own for own in values if len(own) == settings.sampling.samples]
    answers = [one.answer for several in said for one in several if one.answer is not None]
    return TaskScore(
        values=values,
        num_samples=settings.sampling.samples,
        stopped=sum(answer.finished for answer in answers) / len(answers) if answers else 0.0,
        events=dict(Counter(score.event for several in graded for score in several if score.event)),
        pass_at={
            k: sum(pass_at_k(len(own), sum(value >= 1 for value in own), k) for own in whole) / len(whole)
            for k in settings.pass_at
            if whole
        },
    )


def _rows(task: Task, form: str, said: list[list[Said]], graded: list[list[Score]]) -> list[dict[str, Any]]:
    rows = []
    for number, (question, several, scores) in enumerate(zip(task.questions, said, graded, strict=True)):
        for sample, (one, score) in enumerate(zip(several, scores, strict=True)):
            answer = one.answer or Graded(answer="", finished=False)
            rows.append(
                {
                    "task": task.name,
                    "form": form,
                    "question": number,
                    "sample": sample,
                    "thoughts": answer.thoughts,
                    "answer": answer.answer,
                    "reference": question.reference,
                    "value": score.value,
                    "event": score.event,
                    "detail": score.detail,
                    "finished": answer.finished,
                    "num_tokens": answer.num_tokens,
                }
            )
    return rows


def _parts(messages: Messages) -> Iterable[Mapping[str, Any]]:
    for message in messages:
        if not isinstance(message.get("content"), str):
            yield from message.get("content") or ()
