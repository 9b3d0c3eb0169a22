"""The judge of programs: what it takes for the program, what passes, what is an event."""

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.rewards import parse_spec
from ernie45.data.answers import Graded
from ernie45.train.rewards.code import Code, program_of
from ernie45.train.rewards.registry import build
from ernie45.train.rewards.sandbox.run import Ran

SUMS = [{"input": "1 2\n", "output": "3"}, {"input": "2 2\n", "output": "4 \n\n"}]


def test_the_last_block_is_the_program() -> None:
    answer = "First:\n```python\na\n```\nthen\n```py\nb\n```\nresult:\n```text\n3\n```"
    assert program_of(answer) == "b\n"
    assert program_of("```\nc\n```") == "c\n"
    assert program_of("```python\ncut off") == "cut off"
    assert program_of("print(1)") == "print(1)"


def test_programs_are_judged_by_output_and_by_assert() -> None:
    add, constant = "```python\nprint(sum(map(int, input().split())))\n```", "print(3)"
    asserts = ["assert f(1) == 2", "assert candidate(2) == 4"]
    batch = [
        Graded(answer=add, extra={"tests": SUMS}),
        Graded(answer=constant, extra={"tests": SUMS}),
        Graded(answer="no program at all", extra={"tests": SUMS}),
        Graded(answer="def f(x): return x + 1", extra={"tests": asserts, "entry_point": "f"}),
    ]
    reward = build(parse_spec("code(mode=share, workers=2)"))
    assert [score.value for score in reward.judge(batch)] == [1.0, 0.5, 0.0, 0.5]
    assert build(parse_spec("code")).judge(batch[1:2])[0].value == 0.0


@pytest.mark.parametrize(
    ("tests", "event"),
    [
        (None, "no_tests"),
        ([], "no_tests"),
        ([{"input": "1"}], "bad_tests"),
        ([{"input": "1", "output": 3}], "bad_tests"),
        (["assert"], "bad_tests"),
        (["assert f(1) == 1", {"input": "", "output": ""}], "bad_tests"),
        (["assert f(lambda: 1)"], "unsupported_test"),
    ],
)
def test_tests_that_cannot_be_run_are_events(tests: object, event: str) -> None:
    item = Graded(answer="def f(x): return x", extra={} if tests is None else {"tests": tests})
    assert Code().judge([item])[0].event == event


def test_a_busy_machine_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    starved = Ran(ended="starved", code=-9, stdout="", stderr="")
    monkeypatch.setattr("ernie45.train.rewards.code.run_program", lambda *_: starved)
    assert Code().judge([Graded(answer="1", extra={"tests": SUMS})])[0].event == "sandbox_starved"


@pytest.mark.parametrize(
    ("options", "why"), [("mode=some", "all or share"), ("workers=0", "at least 1"), ("memory=1", "64"), ("cpu=0", "above 0")]
)
def test_wrong_options(options: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(parse_spec(f"code({options})"))
