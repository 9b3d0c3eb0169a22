"""Which tasks there are: the built-in ones by name, and one's own from a file of prompts with answers.

Knows nothing about who answers or what a reward does.
"""

from collections.abc import Sequence
from pathlib import Path

from ernie45.config.errors import ConfigError, DataError
from ernie45.data.answers import Grader
from ernie45.data.dataset import Dataset
from ernie45.data.records import Prompt
from ernie45.evals import tiny
from ernie45.evals.run import Question, Task, exact


def builtin_titles() -> dict[str, str]:
    """Name -> title of every built-in task, in order."""
    return dict(tiny.TITLES)


def builtin_tasks(names: Sequence[str], num: int, seed: int) -> list[Task]:
    """`num` questions each; equal arguments give equal questions. ConfigError for an unknown name; none: all."""
    known = builtin_titles()
    for name in names:
        if name not in known:
            raise ConfigError(f"task ({name!r}) must be one of {', '.join(known)}; see `ernie45 eval --list`")
    return tiny.tasks(tiny.heldout_samples(num, seed, tuple(names) or tuple(known)))


def task_from_files(paths: Sequence[Path], num: int | None, grade: Grader = exact) -> Task:
    """Prompts with answers, the first `num` of them. DataError for a file without any, or a bad record (file:line and why)."""
    dataset = Dataset(paths, want=(Prompt,))
    questions = []
    for index in range(len(dataset) if num is None else min(num, len(dataset))):
        prompt = dataset[index]
        assert isinstance(prompt, Prompt), prompt
        questions.append(Question(messages=prompt.messages, reference=prompt.answer, domain=prompt.domain, extra=prompt.extra))
    name = ", ".join(path.name for path in paths)
    if not questions:
        raise DataError(f"data ({name}) must have at least one prompt with an answer")
    return Task(name="data", title=name, questions=questions, grade=grade)
