"""The policy objective against TRL, against formulas written out token by token, and in what must not matter.

Knows nothing about models. tests/golden/trl_policy.py says how TRL's numbers were made.
"""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ernie45.config.policy import CriticConfig, PolicyConfig
from ernie45.train.objectives.advantages import (
    generalised_advantages,
    group_advantages,
    overlong_penalty,
    spread,
    whitened,
)
from ernie45.train.objectives.policy import PolicyOutputs, kl_estimate, label_weights, policy_loss, value_loss
from ernie45.train.policy_batch import PolicyBatch
from tests.golden.trl_policy import CASES, GOLDEN, MAX_TOKENS, inputs

TRL = json.loads(GOLDEN.read_text())


def batch_of(sequences: list[int], normalise: str, has_old: bool = True, share: float = 1.0) -> tuple[PolicyBatch, Tensor]:
    """These sequences of the golden data as one shard, and the policy's log-probabilities [R] with gradient, fp64."""
    data = inputs()
    mask = data["mask"][sequences].bool()
    lengths = [int(length) for length in data["mask"].sum(1).tolist()]
    weights = torch.tensor(label_weights(lengths, normalise, MAX_TOKENS), dtype=torch.float64)
    advantages = torch.tensor(TRL["advantages"]["group"], dtype=torch.float64)
    place_R = mask.nonzero()[:, 0]

    def rows(name: str) -> Tensor:
        return data[name][sequences][mask]

    batch = PolicyBatch(
        packed=None,  # type: ignore[arg-type]
        rows_R=torch.arange(len(place_R)),
        labels_R=torch.zeros(len(place_R), dtype=torch.int64),
        sequence_R=place_R,
        num_sequences=len(sequences),
        weights_R=weights[sequences][place_R],
        advantages_R=advantages[sequences][place_R],
        engine_R=rows("engine"),
        old_R=rows("old") if has_old else None,
        reference_R=rows("reference"),
        values_R=None,
        returns_R=None,
        pairs_Q2=torch.empty(0, 2, dtype=torch.int64),
        pair_weight=0.0,
        token_weight=0.0,
        share=share,
    )
    return batch, rows("logprobs").clone().requires_grad_()


def outputs_of(logprobs_R: Tensor, values_R: Tensor | None = None) -> PolicyOutputs:
    return PolicyOutputs(logprobs_R, torch.zeros_like(logprobs_R), values_R, [])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_trl(name: str):
    settings, _, has_old = CASES[name]
    config = PolicyConfig(**settings)
    batch, logprobs_R = batch_of(list(range(6)), config.normalise, has_old)
    loss = policy_loss(outputs_of(logprobs_R), batch, config)
    loss.loss.backward()
    golden = TRL["cases"][name]
    assert abs(loss.loss.item() - golden["loss"]) < 1e-9
    mask = inputs()["mask"].bool()
    expected = torch.tensor(golden["grad"], dtype=torch.float64)
    assert logprobs_R.grad is not None
    assert torch.allclose(logprobs_R.grad, expected[mask], atol=1e-9)
    assert expected.abs().max() > 1e-3


def test_advantages_are_those_of_trl():
    rewards = inputs()["rewards"].numpy()
    for kind, expected in TRL["advantages"].items():
        found = np.concatenate([group_advantages(row, kind) for row in rewards])
        assert np.abs(found - np.array(expected)).max() < 1e-12


SETTINGS: list[dict[str, Any]] = [
    {},
    {"normalise": "token", "clip_low": 0.05, "clip_high": 0.4, "dual_clip": 1.6},
    {"ratio": "sequence", "kl_weight": 0.3, "kl_estimator": "k2"},
    {"normalise": "constant", "mismatch": "truncate", "mismatch_high": 1.2},
    {"mismatch": "mask", "mismatch_ratio": "sequence", "kl_weight": 0.1, "kl_estimator": "k1"},
]


def by_hand(batch: PolicyBatch, logprobs: list[float], config: PolicyConfig) -> float:
    """One token at a time, in plain Python."""
    assert batch.old_R is not None
    assert batch.reference_R is not None
    total = 0.0
    sequence = batch.sequence_R.tolist()
    for row, logprob in enumerate(logprobs):
        own = [other for other in range(len(logprobs)) if sequence[other] == sequence[row]]
        log_ratio, log_k = logprob - batch.old_R[row].item(), batch.old_R[row].item() - batch.engine_R[row].item()
        if config.ratio == "sequence":
            log_ratio = sum(logprobs[other] - batch.old_R[other].item() for other in own) / len(own)
        if config.mismatch_ratio == "sequence":
            log_k = sum(batch.old_R[other].item() - batch.engine_R[other].item() for other in own)
        ratio, k, advantage = math.exp(log_ratio), math.exp(log_k), batch.advantages_R[row].item()
        clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * advantage
        loss = -min((min(ratio, config.dual_clip) if config.dual_clip else ratio) * advantage, clipped)
        if config.mismatch == "truncate":
            loss *= min(k, config.mismatch_high)
        elif config.mismatch == "mask":
            loss *= k if config.mismatch_low <= k <= config.mismatch_high else 0.0
        d = batch.reference_R[row].item() - logprob
        loss += config.kl_weight * {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[config.kl_estimator]
        total += batch.weights_R[row].item() * loss
    return total


@pytest.mark.parametrize("settings", SETTINGS)
def test_equal_to_the_formula_by_hand_and_to_its_slope(settings: dict[str, Any]):
    config = PolicyConfig(**settings)
    batch, logprobs_R = batch_of(list(range(6)), config.normalise)
    loss = policy_loss(outputs_of(logprobs_R), batch, config).loss
    loss.backward()
    values = logprobs_R.tolist()
    assert abs(loss.item() - by_hand(batch, values, config)) < 1e-12
    assert logprobs_R.grad is not None
    for row in (0, 5, len(values) - 1):
        moved = [[value + step * (place == row) for place, value in enumerate(values)] for step in (1e-6, -1e-6)]
        slope = (by_hand(batch, moved[0], config) - by_hand(batch, moved[1], config)) / 2e-6
        assert abs(logprobs_R.grad[row].item() - slope) < 1e-7


@pytest.mark.parametrize("settings", SETTINGS)
def test_shards_add_up_whatever_they_are(settings: dict[str, Any]):
    config = PolicyConfig(**settings)
    whole, whole_R = batch_of(list(range(6)), config.normalise)
    expected = policy_loss(outputs_of(whole_R), whole, config)
    parts = []
    for sequences in ([4], [0, 5, 2], [1, 3]):
        batch, logprobs_R = batch_of(sequences, config.normalise, share=1 / 3)
        parts.append(policy_loss(outputs_of(logprobs_R), batch, config))
    assert abs(sum(part.loss.item() for part in parts) - expected.loss.item()) < 1e-12
    for name in set(expected.metrics) - {"mismatch_max"}:
        sums = [sum(float(part.metrics[name][place]) for part in parts) for place in (0, 1)]
        value, count = expected.metrics[name]
        assert abs(sums[0] / sums[1] - float(value) / count) < 1e-9, name


def test_what_counts_nothing_changes_nothing():
    config = PolicyConfig(mismatch="mask", kl_weight=0.1)
    batch, logprobs_R = batch_of([0, 1, 2], config.normalise)
    batch = replace(batch, weights_R=batch.weights_R * (batch.sequence_R != 1))
    loss = policy_loss(outputs_of(logprobs_R), batch, config)
    loss.loss.backward()
    assert logprobs_R.grad is not None
    assert (logprobs_R.grad[batch.sequence_R == 1] == 0).all()
    assert loss.metrics["entropy"][1] == (batch.sequence_R != 1).sum()
    nothing = policy_loss(outputs_of(logprobs_R), replace(batch, weights_R=batch.weights_R * 0), config)
    assert nothing.loss == 0
    assert all(float(count) == 0 or math.isfinite(float(value)) for value, count in nothing.metrics.values())


def test_a_group_of_equal_rewards_has_no_advantage_and_no_nan():
    for kind in ("group", "group_mean", "leave_one_out"):
        assert (group_advantages(np.full(4, 0.1), kind) == 0).all()
        assert (group_advantages(np.array([np.nan, 1.0]), kind) == 0).all()
        found = group_advantages(np.array([1.0, np.nan, 0.0, 0.0]), kind)
        assert found[1] == 0
        assert abs(found.sum()) < 1e-12
    assert spread(np.full(3, 0.1)) == 0
    assert spread(np.array([np.nan])) == 0


def test_leave_one_out_compares_with_the_others():
    rewards = np.array([1.0, 0.0, 0.5, 0.25])
    expected = [reward - (rewards.sum() - reward) / 3 for reward in rewards]
    assert np.allclose(group_advantages(rewards, "leave_one_out"), expected)


def test_gae_by_its_definition():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=6), rng.normal(size=6)
    deltas = [rewards[t] + 0.9 * (values[t + 1] if t < 5 else 0) - values[t] for t in range(6)]
    expected = [sum((0.9 * 0.7) ** k * deltas[t + k] for k in range(6 - t)) for t in range(6)]
    assert np.allclose(generalised_advantages(rewards, values, 0.9, 0.7), expected)
    terminal = np.array([0.0, 0.0, 1.0])
    whole = generalised_advantages(terminal, np.zeros(3), 1.0, 1.0)
    assert whole.tolist() == [1.0, 1.0, 1.0], "without discount every token gets the answer's reward"
    joined = np.concatenate(whitened([rewards, values]))
    assert abs(joined.mean()) < 1e-12
    assert abs(joined.std() - 1) < 1e-6


def test_the_value_loss_takes_the_worse_of_near_and_far():
    config = CriticConfig(clip=0.2, weight=0.5)
    batch, logprobs_R = batch_of([0, 1], "token")
    count = len(logprobs_R)
    batch = replace(batch, values_R=torch.zeros(count).double(), returns_R=torch.ones(count).double())
    values_R = torch.linspace(-1, 2, count, dtype=torch.float64).requires_grad_()
    loss = value_loss(outputs_of(logprobs_R, values_R), batch, config)
    weights = batch.weights_R.tolist()
    expected = sum(
        weight * 0.25 * max((value - 1) ** 2, (min(max(value, -0.2), 0.2) - 1) ** 2)
        for weight, value in zip(weights, values_R.tolist(), strict=True)
    )
    assert abs(loss.loss.item() - expected) < 1e-12
    loss.loss.backward()
    assert values_R.grad is not None
    assert (values_R.grad[values_R > 0.3][values_R[values_R > 0.3] < 1.7] == 0).all(), "nothing to gain beyond the bound"


def test_kl_estimators_agree_on_average():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(8, generator=generator).double().log_softmax(0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    for estimator in ("k1", "k3"):
        assert abs(kl_estimate(p[drawn], q[drawn], estimator).mean() - exact) < 0.02
    assert (kl_estimate(p[drawn], q[drawn], "k3") >= 0).all()


def test_a_length_near_the_limit_costs_reward():
    assert [overlong_penalty(length, 20, 8) for length in (5, 12, 14, 16, 20)] == [0, 0, 0.25, 0.5, 1]
