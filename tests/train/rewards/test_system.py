"""The system: composition, domains, events that are masked and counted, normalisation, state; and judges in processes."""

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ernie45.config.errors import ConfigError, DataError
from ernie45.config.rewards import RewardsConfig, parse_spec
from ernie45.data.answers import Graded, Score
from ernie45.train.rewards import registry
from ernie45.train.rewards.normalise import Normaliser
from ernie45.train.rewards.registry import build
from ernie45.train.rewards.reward import Reward
from ernie45.train.rewards.system import RewardSystem

OWN = f"{Path(__file__).with_name('own_judge.py')}:length"


@dataclass(frozen=True, kw_only=True)
class Says(Reward):
    """Says what the answer says, number or event, and notes what it was shown."""

    name: str = ""
    seen = []  # noqa: RUF012  shared on purpose

    def judge(self, batch: Sequence[Graded]) -> list[Score]:
        self.seen.extend((self.name, item.answer, item.thoughts) for item in batch)
        if any(item.answer == "explode" for item in batch):
            raise RuntimeError("the whole batch")
        if any(item.answer == "short" for item in batch):
            return []
        return [
            Score(value=float(item.answer)) if item.answer[0] in "-0123456789ni" else Score.failed(item.answer)
            for item in batch
        ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    monkeypatch.setitem(registry.REWARDS, "says", f"{__name__}:Says")
    Says.seen.clear()
    yield Says.seen
    Says.seen.clear()


def judged(spec: str, *answers: str, **fields: object) -> list[Score]:
    return build(parse_spec(spec)).judge([Graded(answer=answer, **fields) for answer in answers])  # type: ignore[arg-type]


def test_sums_products_and_the_first_that_applies(seen: list) -> None:
    assert [s.value for s in judged("2*says - 0.5*exact", "1", "3", reference="3")] == [2.0, 5.5]
    assert [s.value for s in judged("exact * says", "2", "3", reference="3")] == [0.0, 3.0]
    assert [s.value for s in judged("first(choice, numeric, exact)", "3", "3.0", reference="3")] == [1.0, 1.0]
    assert judged("first(choice(letters=AB), numeric)", "x", reference="some words")[0].event == "no_reward_applies"
    [score] = judged("exact + 0.1*says", "3", reference="3")
    assert score.parts == {"exact": 1.0, "says": 3.0}
    assert judged("says + exact(case=false) + exact", "3", reference="3")[0].parts == {"says": 3, "exact": 1, "exact.2": 1}


def test_a_gate_spares_what_stands_behind_it(seen: list) -> None:
    judged("exact * says", "2", "3", reference="3")
    assert seen == [("", "3", "")]


def test_events_are_never_zeros(seen: list) -> None:
    for spec in ("says", "says + exact", "0.5*says * exact", "first(says, exact)"):
        scores = judged(spec, "timeout", "3", reference="3")
        assert scores[0].event == "timeout"
        assert scores[0].value is None
        assert scores[1].value is not None
    assert judged("exact * says", "timeout", reference="3")[0].value == 0.0  # the gate was closed: nobody was asked


def test_whatever_a_judge_does_is_an_event(seen: list) -> None:
    assert [s.event for s in judged("says", "explode", "3")] == ["raised_runtime_error"] * 2
    assert [s.event for s in judged("says", "short", "3")] == ["raised_value_error"] * 2
    assert [s.event for s in judged("says", "nan", "inf", "3")] == ["not_finite", "not_finite", ""]


def test_judges_see_the_answer_alone(seen: list) -> None:
    item = Graded.from_output("7 is right</think>3", True)
    build(parse_spec("says * format")).judge([item])
    assert seen == [("", "3", "")]


@pytest.mark.usefixtures("seen")
def test_domains_have_their_judges(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    domains = json.dumps({"a": "exact", "b": "says"})
    config = RewardsConfig(spec="", domains=domains, log_events=1)
    system, filed = RewardSystem(config), RewardSystem(config, tmp_path / "reward-events.jsonl")
    batch = [
        Graded(answer="1", reference="1", domain="a"),
        Graded(answer="late", domain="b"),
        Graded(answer="5", domain="b"),
        Graded(answer="gone", domain="b"),
    ]
    with caplog.at_level(logging.WARNING):
        rewards = system.score(batch)
    first = {"event": "late", "detail": "says: ", "domain": "b", "question": "", "reference": None, "answer": "late"}
    assert [record.getMessage() for record in caplog.records] == [
        f"no score: {json.dumps(first)}",
        "no score for 1 answers more of this batch",
    ]
    for _ in range(2):
        filed.score(batch)
    assert [json.loads(line) for line in (tmp_path / "reward-events.jsonl").read_text().splitlines()] == [first, first]
    assert rewards.values == [1.0, 0.0, 5.0, 0.0]
    assert rewards.mask == [True, False, True, False]
    assert system.events == {"late": 1, "gone": 1}
    metrics = rewards.metrics()
    assert metrics["reward/events"] == (2.0, 4)
    assert metrics["reward/event/late"] == (1.0, 4)
    assert metrics["reward/mean"] == (6.0, 2)
    assert metrics["reward/domain/b"] == (5.0, 1)
    with pytest.raises(DataError, match="domain \\('c'\\) has no reward; rewards.domains has a, b"):
        system.score([Graded(answer="1", domain="c")])


@pytest.mark.usefixtures("seen")
def test_a_judge_that_is_down_stops_the_run() -> None:
    system = RewardSystem(RewardsConfig(spec="says", max_event_share=0.5, log_events=0))
    system.score([Graded(answer="down")] * 63)  # too few to tell
    with pytest.raises(ConfigError, match=r"95% of the last 66 answers got no score \(.*down"):
        system.score([Graded(answer="1")] * 3 + [Graded(answer="down")] * 63)
    lenient = RewardSystem(RewardsConfig(spec="says", max_event_share=1.0, log_events=0))
    lenient.score([Graded(answer="down")] * 200)


def test_normalising_by_domain() -> None:
    values, domains = [0.0, 1.0, 10.0, 30.0, 7.0, 99.0], ["a", "a", "b", "b", "c", "a"]
    mask = [True] * 5 + [False]
    assert Normaliser("none", 0.9)(values, domains, mask) == [*values[:5], 0.0]
    batch = Normaliser("batch", 0.9)(values, domains, mask)
    assert batch == [-1.0, 1.0, -1.0, 1.0, 0.0, 0.0]
    running = Normaliser("running", 0.9)
    assert running(values, domains, mask) == pytest.approx(batch)
    # Twice: averages of 0.5, 0.5 and of batch moments, by hand.
    again = running([4.0, 4.0], ["a", "a"], [True, True])
    s0 = 0.9 * 0.1 + 0.1
    mean, square = (0.9 * 0.1 * 0.5 + 0.1 * 4) / s0, (0.9 * 0.1 * 0.5 + 0.1 * 16) / s0
    assert again[0] == pytest.approx((4 - mean) / math.sqrt(square - mean**2))


def test_state_goes_on_where_it_stopped() -> None:
    config = RewardsConfig(spec="exact", normalise="running")
    batches = [[Graded(answer=str(n % 3), reference="1", domain="d") for n in range(size)] for size in (4, 5, 7)]
    straight, first = RewardSystem(config), RewardSystem(config)
    for system, upto in ((straight, 2), (first, 1)):
        for batch in batches[:upto]:
            system.normalise(system.score(batch))
    resumed = RewardSystem(config)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.normalise(resumed.score(batches[1]))
    rewards = straight.score(batches[2])
    assert resumed.normalise(rewards) == straight.normalise(rewards)
    with pytest.raises(ConfigError, match="must be 'running'"):
        RewardSystem(RewardsConfig(spec="exact")).load_state_dict(first.state_dict())


def test_functions_in_processes() -> None:
    """A judge of one's own: what it returns, and that nothing it does reaches the trainer."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {}}]}]
    answers = ["abc", "raise", "decline", "nan", "hang", "die", "", "ab"]
    with RewardSystem(RewardsConfig(spec=f'function(at="{OWN}", timeout=3, workers=2)')) as system:
        rewards = system.score([Graded(answer=answer, thoughts="secret", messages=messages) for answer in answers])
        again = system.score([Graded(answer="x")])
    events = ["", "raised_key_error", "declined", "not_finite", "timeout", "worker_died", "", ""]
    assert [score.event for score in rewards.scores] == events
    assert [rewards.values[place] for place in (0, 6, 7)] == [7.0, 4.0, 6.0]  # of 3, 0 and 2 letters; thoughts are hidden
    assert again.values == [1.0]
    with pytest.raises(ConfigError, match="cannot be loaded: AttributeError"):
        RewardSystem(RewardsConfig(spec=f'function(at="{OWN}th")')).start()


def test_a_pattern_that_never_ends_is_an_event() -> None:
    with RewardSystem(RewardsConfig(spec=r'regex(pattern="^(a+)+$", timeout=2)')) as system:
        rewards = system.score([Graded(answer="aaa"), Graded(answer="a" * 60 + "b"), Graded(answer="b")])
    assert [score.value for score in rewards.scores] == [1.0, None, 0.0]
    assert rewards.scores[1].event == "timeout"


def test_mathematics() -> None:
    """Cases of the package itself are not repeated: what matters here is that it runs, in threads too, and that events are."""
    pytest.importorskip("math_verify")
    cases = [
        (r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"$x^2 + 2x + 1$", "(x+1)^2", 1.0),
        ("The answer is 12.", "13", 0.0),
        ("I do not know", "13", 0.0),
        (r"$\{1, 2\}$", r"\{2, 1\}", 1.0),
        ("7", "", None),
    ]
    with RewardSystem(RewardsConfig(spec="math(workers=1)")) as system:
        rewards = system.score([Graded(answer=answer, reference=reference) for answer, reference, _ in cases])
    assert [score.value for score in rewards.scores] == [value for *_, value in cases]
    assert rewards.scores[-1].event == "bad_reference"


def test_mathematics_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package math-verify"):
        RewardSystem(RewardsConfig(spec="math")).start()


def test_workers_end_with_the_trainer(tmp_path: Path) -> None:
    """A trainer that is killed leaves nobody behind, also while a worker waits for ever."""
    code = f"""
import os, signal, threading, time
from ernie45.data.answers import Graded
from ernie45.train.rewards.workers import Worker
worker = Worker({OWN!r})
worker.start()
print(worker._process.pid, flush=True)
threading.Thread(target=worker.ask, args=(Graded(answer="hang"), {{}}, 60.0), daemon=True).start()
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and time.monotonic() < end:
        if b"worker_main" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            break  # ended, or another process by now
        time.sleep(0.1)
    else:
        assert time.monotonic() < end
