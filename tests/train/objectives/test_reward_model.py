"""The pairwise reward loss by hand, against TRL, and over shards."""

import json
import math
from typing import Any

import pytest
import torch

from ernie45.config.errors import ConfigError
from ernie45.config.reward_model import RewardModelConfig
from ernie45.train.objectives.reward_model import reward_model_loss
from tests.golden.trl_preference import GOLDEN, NUM_PAIRS, REWARD_CASES


def test_by_hand() -> None:
    rewards = torch.tensor([[1.0, -0.5], [0.2, 0.7]], dtype=torch.float64)
    margins = torch.tensor([0.5, 2.0], dtype=torch.float64)
    config = RewardModelConfig(margin_weight=0.4, centring=0.03)
    loss = reward_model_loss(rewards, margins, (0.5, 1.0), config)
    gaps, sums = (1.5 - 0.2, -0.5 - 0.8), (0.5, 0.9)
    expected = sum(math.log1p(math.exp(-gap)) + 0.03 * total**2 for gap, total in zip(gaps, sums, strict=True)) / 2
    assert loss.loss.item() == pytest.approx(expected, rel=1e-12)
    means = {name: float(value) / count for name, (value, count) in loss.metrics.items()}
    assert means == pytest.approx(
        {"loss": expected, "accuracy": 0.5, "margin": 0.5, "reward_chosen": 0.6, "reward_rejected": 0.1}
    )


@pytest.mark.parametrize("name", REWARD_CASES)
def test_equals_trl(name: str) -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    leaf = torch.tensor(golden["inputs"]["rewards"], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor(golden["inputs"]["margins"], dtype=torch.float64)
    rewards_B2 = torch.stack(leaf.chunk(2), 1)
    loss = reward_model_loss(rewards_B2, margins, (1 / NUM_PAIRS, 1.0), RewardModelConfig(**REWARD_CASES[name][0])).loss
    assert loss.item() == pytest.approx(golden["results"][name]["loss"], rel=1e-9)
    expected = torch.tensor(golden["results"][name]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(loss, [leaf])[0], expected)


def test_shards_add_up_to_the_step() -> None:
    rewards = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    config = RewardModelConfig(margin_weight=1.0)
    whole = reward_model_loss(rewards, torch.ones(6), (1 / 6, 1.0), config)
    parts = [reward_model_loss(part, torch.ones(len(part)), (1 / 6, 0.5), config) for part in (rewards[:2], rewards[2:])]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item())
    reported = [sum(float(part.metrics["loss"][i]) for part in parts) for i in (0, 1)]
    assert reported[0] / reported[1] == pytest.approx(whole.loss.item())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"centring \(-0.1\) must be at least 0"):
        RewardModelConfig(centring=-0.1)
