"""Asking, grading, counting and showing, with models that are functions."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ernie45.config.errors import ConfigError, DataError
from ernie45.data.answers import Graded, Score
from ernie45.evals import shown
from ernie45.evals.answerers import EngineAnswerer, Messages, Said, Sampling
from ernie45.evals.run import Question, Result, Settings, Task, difference, run
from ernie45.evals.tasks import builtin_tasks, builtin_titles, task_from_files


class Model:
    """Answers with its rule (question, number of the answer) -> text, or None for none."""

    def __init__(self, rule: object, name: str = "model", sees_pictures: bool | None = True) -> None:
        self.name, self.sees_pictures, self.rule = name, sees_pictures, rule
        self.seeds: list[int] = []
        self.closed = False

    def answer(self, conversations: Sequence[Messages], thinking: bool, sampling: Sampling) -> list[list[Said]]:
        self.seeds.append(sampling.seed)
        return [[self._said(messages, n, thinking) for n in range(sampling.samples)] for messages in conversations]

    def close(self) -> None:
        self.closed = True

    def _said(self, messages: Messages, number: int, thinking: bool) -> Said:
        text = self.rule(messages[-1]["content"], number, thinking)  # type: ignore[operator]
        if text is None:
            return Said(error="refused", detail="400: no pictures")
        return Said(answer=Graded.from_output(text, thinking, finished="!" not in text, num_tokens=len(text)))


def sums(num: int) -> Task:
    questions = [Question(messages=[{"role": "user", "content": f"{n}+1"}], reference=str(n + 1)) for n in range(num)]
    return Task(name="sums", title="sums of one", questions=questions)


def clever(question: str, number: int, thinking: bool) -> str:
    """Right when it thinks; without, only for even numbers; at the third try and later wrong."""
    n = int(question.split("+")[0])
    right = number < 2 and (thinking or n % 2 == 0)
    text = str(n + 1) if right else "0!"
    return f"hm</think>\n\n{text}" if thinking else text


def test_scores_by_form_with_intervals() -> None:
    told: list[tuple[int, int]] = []
    model = Model(clever)
    result = run(model, [sums(10)], Settings(), lambda *progress: told.append(progress), at_once=4)
    scores = result.scores["sums"]
    assert scores["thinking"].score == pytest.approx((1.0, 0.7225, 1.0), abs=1e-3)
    assert scores["direct"].score == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-3)
    assert scores["direct"].stopped == 0.5
    assert told == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]
    assert model.seeds == [0, 4, 8] * 2
    row = result.answers[0]
    assert (row["form"], row["thoughts"], row["answer"], row["value"], row["finished"]) == ("thinking", "hm", "1", 1.0, True)


def test_samples_and_pass_at_k() -> None:
    sampling = Sampling(temperature=1.0, samples=4)
    result = run(Model(clever), [sums(6)], Settings(sampling=sampling, pass_at=(1, 2, 4)))
    score = result.scores["sums"]["thinking"]
    assert score.score is not None
    assert score.score.mean == 0.5
    assert score.pass_at == pytest.approx({1: 0.5, 2: 1 - 1 / 6, 4: 1.0})
    assert result.scores["sums"]["direct"].pass_at[4] == 0.5
    with pytest.raises(ConfigError, match="samples \\(2\\) must be 1 at temperature 0"):
        Sampling(samples=2)
    with pytest.raises(ConfigError, match="pass-at \\(5\\)"):
        Settings(sampling=sampling, pass_at=(5,))


def test_answers_without_a_score_are_masked_and_counted() -> None:
    def grade(batch: Sequence[Graded]) -> list[Score]:
        return [
            Score.failed("late") if item.answer == "3" else Score(value=float(item.answer == item.reference)) for item in batch
        ]

    def shy(question: str, number: int, thinking: bool) -> str | None:
        return None if question == "0+1" else clever(question, number, True)

    result = run(Model(shy), [replace(sums(4), grade=grade)], Settings(forms=("thinking",)))
    score = result.scores["sums"]["thinking"]
    assert score.means == [None, 1.0, None, 1.0]
    assert score.events == {"refused": 1, "late": 1}
    assert score.score is not None
    assert score.score.mean == 1.0
    nothing = run(Model(lambda *_: None), [sums(2)], Settings(forms=("thinking",)))
    assert nothing.scores["sums"]["thinking"].score is None
    assert "-" in printed(nothing)


PICTURE = Question(messages=[{"role": "user", "content": [{"type": "image", "image": b""}]}], reference="x")


def test_tasks_with_pictures_are_skipped_where_they_cannot_be_seen() -> None:
    seen = Task(name="seen", title="pictures", questions=[PICTURE])
    blind = Model(clever, sees_pictures=False)
    result = run(blind, [seen, sums(2)], Settings())
    assert list(result.scores) == ["sums"]
    assert result.skipped == {"seen": "the model has no vision, and the task shows pictures"}
    assert "skipped pictures: the model has no vision" in printed(result, {"seen": "pictures", "sums": "sums"})
    server = run(Model(lambda *_: None, sees_pictures=None), [seen], Settings())
    assert server.skipped == {"seen": "the server refuses its pictures: 400: no pictures"}


def test_two_models_on_the_same_questions() -> None:
    thinking, direct = run(Model(clever, "one"), [sums(40)], Settings()).scores["sums"].values()
    other = run(Model(clever, "other"), [sums(40)], Settings(forms=("direct",)))
    assert other.scores["sums"]["direct"] == direct
    one = replace(other, model="one", scores={"sums": {"direct": thinking}})
    gap = difference(one.scores["sums"]["direct"], other.scores["sums"]["direct"])
    assert gap is not None
    assert gap.mean == 0.5
    assert 0.3 < gap.low < 0.4 < 0.6 < gap.high < 0.7
    titles = {"sums": "sums of one"}
    found = json.loads(json.dumps(shown.to_dict(one, titles, other)))
    assert found["difference"]["sums"]["direct"]["mean"] == 0.5
    assert found["against"]["tasks"]["sums"]["direct"]["score"] == 0.5
    assert re.search(r"\| sums of one \| 100.0 \| \+50.0 \[\+\d+, \+\d+\] \|", shown.markdown(one, titles, other))
    assert "+50.0" in printed(one, titles, other)


def printed(result: Result, titles: dict[str, str] | None = None, other: Result | None = None) -> str:
    console = Console(file=io.StringIO(), width=120)
    shown.print_table(result, titles or {"sums": "sums of one"}, other, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_built_in_tasks_are_the_held_out_ones() -> None:
    tasks = builtin_tasks(["arithmetic", "sum2"], 3, seed=5)
    assert [task.name for task in tasks] == ["arithmetic", "sum2"]
    assert [task.shows_pictures for task in tasks] == [False, True]
    assert [len(task.questions) for task in tasks] == [3, 3]
    assert len(builtin_tasks([], 1, 0)) == len(builtin_titles())
    with pytest.raises(ConfigError, match="task \\('sum'\\) must be one of read, sum2"):
        builtin_tasks(["sum"], 1, 0)


def test_ones_own_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n}+1"}], "answer": str(n + 1), "domain": "d"} for n in range(5)]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = task_from_files([file], 3)
    assert [question.reference for question in task.questions] == ["1", "2", "3"]
    assert task.questions[0].domain == "d"
    assert len(task_from_files([file], None).questions) == 5
    file.write_text('{"messages": []}')
    with pytest.raises(DataError, match="prompts.jsonl:1"):
        task_from_files([file], None)


def test_the_engine_answers_with_samples_and_seeds() -> None:
    """Greedy equals itself; equal seeds give equal draws, other seeds others; what cannot be asked costs itself alone."""
    answerer = EngineAnswerer.load("tiny")
    try:
        asked = [[{"role": "user", "content": "What is 47+12?"}], [{"role": "user", "content": "x" * 5000}]]
        [[greedy], [too_long]] = answerer.answer(asked, True, Sampling())
        assert greedy.answer is not None
        assert greedy.answer.finished
        assert greedy.answer.thoughts
        assert (too_long.answer, too_long.error) == (None, "not_asked")
        hot = Sampling(temperature=2.0, samples=4, max_tokens=24)
        once, again, other = (answerer.answer(asked[:1], False, sampling) for sampling in (hot, hot, replace(hot, seed=9)))
        assert once == again != other
        assert len({said.answer.answer for said in once[0] if said.answer}) > 1
        assert answerer.sees_pictures
    finally:
        answerer.close()
