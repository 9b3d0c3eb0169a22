"""The judge of programs: the Python code of an answer against tests, in a sandbox.

Knows nothing about how programs are confined (`sandbox`).
"""

import ast
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded, Score
from ernie45.train.rewards.reward import PerAnswer, Unscored
from ernie45.train.rewards.sandbox.run import Limits, Ran, check_sandbox, run_program, run_tests

_BLOCK = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", flags=re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Code(PerAnswer):
    """Share of the tests that the answer's program passes, or with mode=all 1 if it passes all and else 0.

    The program is the last fenced block of Python (or without a language) in the answer, else the whole answer.
    `extra["tests"]` is a list of either kind:

    - objects {"input": text, "output": text}: the program runs once for each, and its output must be equal, white space at line
      ends and empty lines at the end apart;
    - texts: Python with `assert`, run against the functions that the program defines; `candidate` is `extra["entry_point"]`.

    A program that fails, or runs over a limit, has not passed: 0 for that test. Events: tests that lack or cannot be run, a
    sandbox that did not hold, and time that went by because the machine was too busy ("sandbox_starved").
    cpu, wall (seconds, each run), memory and file (MiB): limits. workers: programs at a time.
    """

    mode: str = "all"
    cpu: int = 5
    wall: float = 20.0
    memory: int = 512
    file: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        if self.mode not in ("all", "share"):
            raise ConfigError(f"mode ({self.mode!r}) of reward code must be all or share")
        if self.workers < 1:
            raise ConfigError(f"workers ({self.workers}) of reward code must be at least 1")
        self._limits()

    def start(self) -> None:
        check_sandbox()

    def applies(self, item: Graded) -> bool:
        return "tests" in item.extra

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self._score, batch))

    def value(self, item: Graded) -> float:
        tests = _tests_of(item)
        program = program_of(item.answer)
        if not _compiles(program):
            return 0.0
        if isinstance(tests[0], str):
            passed = self._call(program, tests, str(item.extra.get("entry_point", "")))
        else:
            passed = self._compare(program, tests)
        return sum(passed) / len(passed) if self.mode == "share" else float(all(passed))

    def _compare(self, program: str, tests: list[dict[str, str]]) -> list[bool]:
        """By input and output; with mode=all not further than the first that fails."""
        passed = []
        for test in tests:
            ran = run_program(program, test["input"], self._limits())
            _check_machine(ran)
            passed.append(ran.ended == "exit" and ran.code == 0 and _lines(ran.stdout) == _lines(test["output"]))
            if self.mode == "all" and not passed[-1]:
                break
        return passed

    def _call(self, program: str, tests: list[str], candidate: str) -> list[bool]:
        verdicts, ran = run_tests(program, tests, self._limits(), candidate)
        _check_machine(ran)
        for verdict in verdicts:
            if verdict.startswith("unsupported"):
                raise Unscored("unsupported_test", verdict)
        return [verdict == "passed" for verdict in verdicts]

    def _limits(self) -> Limits:
        return Limits(cpu=self.cpu, wall=self.wall, memory=self.memory, file=self.file)


def program_of(answer: str) -> str:
    """The last fenced block that is Python or names no language; the whole answer if there is none."""
    blocks = [text for language, text in _BLOCK.findall(answer) if language.lower() in ("", "python", "py", "python3")]
    return blocks[-1] if blocks else answer


def _tests_of(item: Graded) -> list[Any]:
    tests = item.extra.get("tests")
    if not isinstance(tests, list) or not tests:
        raise Unscored("no_tests", "extra.tests must be a list of {input, output} or of texts with assert")
    if all(isinstance(test, str) for test in tests):
        if not all(map(_compiles, tests)):
            raise Unscored("bad_tests", "a test is no Python")
        return tests
    if all(isinstance(test, dict) and {type(test.get("input")), type(test.get("output"))} == {str} for test in tests):
        return tests
    raise Unscored("bad_tests", "tests must all be texts, or all be objects with the texts input and output")


def _compiles(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _check_machine(ran: Ran) -> None:
    if ran.ended == "starved":
        raise Unscored("sandbox_starved", "the program waited for a processor until its time was over; fewer workers may help")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
