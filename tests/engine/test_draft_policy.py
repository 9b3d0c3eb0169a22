"""When guesses are made and how many: as long as they pay, off where they do not, on again later."""

from collections.abc import Sequence

import numpy as np
import pytest

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.chunks import Chunk
from ernie45.engine.request import Request
from ernie45.engine.speculative import MEASURED_EVERY, RETRIED_AFTER, Speculator, StepCost

PROMPT = ModelInput(
    token_ids=np.arange(5),
    is_vision=np.zeros(5, bool),
    positions=np.zeros((5, 3), np.int64),
    patches=np.zeros((0, 12), np.uint8),
    next_position=5,
)


def test_cost_of_a_row() -> None:
    cost = StepCost()
    assert 0 < cost.share(1) < 1
    for rows in (1, 2, 3, 4, 1, 5):
        cost.observe(rows, 0.010 + 0.002 * rows)
    assert cost.share(1) == pytest.approx(0.002 / 0.012)
    assert cost.share(4) == pytest.approx(4 * 0.002 / 0.018)
    for rows in (1, 2) * 300:  # what was long ago is forgotten
        cost.observe(rows, 0.010)
    assert cost.share(1) == pytest.approx(0, abs=0.01)
    alike = StepCost()
    for _ in range(100):
        alike.observe(3, 0.01)
    assert alike.share(3) == StepCost().share(3), "steps of one size say nothing"


class World:
    """A speculator with a proposer that is right with a given probability, and steps that take a given time."""

    def __init__(self, *, fixed: float, per_row: float, hit_rate: float) -> None:
        self.now, self.fixed, self.per_row, self.hit_rate = 0.0, fixed, per_row, hit_rate
        self.rng = np.random.default_rng(0)
        self.speculator = Speculator(SpeculationConfig(method="ngram", num_draft_tokens=4), self, clock=lambda: self.now)
        self.request = Request(request_id="r", inputs=PROMPT, params=SamplingParams())
        self.request.state = "running"
        self.request.num_computed_tokens = self.request.num_tokens - 1

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        return [[1] * count for _, count in wanted]

    def forget(self, request_id: str) -> None:
        raise AssertionError("it is not gone")

    def step(self) -> int:
        """Length of the draft."""
        request = self.request
        self.speculator.draft([request])
        draft = len(request.draft)
        start, end = request.num_computed_tokens, request.num_tokens + draft
        chunks = [Chunk(request, start, end, True)]
        self.speculator.planned(chunks)
        self.now += self.fixed + self.per_row * (1 + draft)
        request.take([1 if self.rng.random() < self.hit_rate else 0 for _ in range(1 + draft)])
        request.num_computed_tokens = request.num_tokens - 1
        self.speculator.observe(chunks)
        return draft


def test_drafts_are_as_long_as_they_pay() -> None:
    good = World(fixed=10, per_row=0.5, hit_rate=0.95)
    assert np.mean([good.step() for _ in range(200)][50:]) > 3.5
    middling = World(fixed=2, per_row=1, hit_rate=0.6)
    assert 0.5 < np.mean([middling.step() for _ in range(600)][100:]) < 3
    assert good.speculator.num_accepted_tokens > 0.8 * good.speculator.num_draft_tokens


def test_it_goes_off_where_it_does_not_pay_and_on_again() -> None:
    world = World(fixed=1, per_row=1, hit_rate=0.0)
    for _ in range(100):
        world.step()
    lengths = [world.step() for _ in range(10 * RETRIED_AFTER)]
    assert max(lengths) == 1
    assert 5 <= sum(lengths) <= 12, "tried again now and then"
    world.hit_rate = 1.0
    for _ in range(20 * RETRIED_AFTER):
        world.step()
    assert np.mean([world.step() for _ in range(2 * MEASURED_EVERY)]) > 3.5


def test_some_steps_are_left_plain_to_measure() -> None:
    world = World(fixed=10, per_row=0.1, hit_rate=1.0)
    lengths = [world.step() for _ in range(4 * MEASURED_EVERY)]
    assert lengths[MEASURED_EVERY - 1 :: MEASURED_EVERY] == [0, 0, 0, 0]
