"""The DPO family against formulas written out by hand, against TRL, and in what must not matter.

Knows nothing about models. tests/golden/trl_preference.py says how TRL's numbers were made.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie45.config.errors import ConfigError
from ernie45.config.preference import NEEDS_REFERENCE, PreferenceConfig
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.preference import LOSSES, PairLogProbs, PairWeights, kto_loss, preference_loss
from tests.golden import trl_preference
from tests.golden.trl_preference import CASES, GOLDEN, KTO_KL, NUM_PAIRS


def random_pairs(num_pairs: int = 6, seed: int = 0) -> PairLogProbs:
    """fp64, with gradient on the policy's side."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, ref_chosen, ref_rejected = (
        -10 * torch.rand(num_pairs, generator=generator, dtype=torch.float64) - 0.5 for _ in range(4)
    )
    lengths = [torch.randint(1, 9, (num_pairs,), generator=generator) for _ in range(2)]
    margins = torch.rand(num_pairs, generator=generator, dtype=torch.float64)
    kl = torch.tensor([0.4, -0.3], dtype=torch.float64)
    policy = chosen.requires_grad_(), rejected.requires_grad_()
    return PairLogProbs(*policy, ref_chosen, ref_rejected, *lengths, margins, kl)


def whole(num_pairs: int, tokens: float = 1.0) -> PairWeights:
    return PairWeights(pair=1 / num_pairs, token=1 / tokens, share=1.0)


def config_of(name: str, **settings: Any) -> PreferenceConfig:
    return PreferenceConfig(losses=(name,), **settings)


# ---- by hand: one pair at a time, in plain Python


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo_by_hand(c: float, r: float, p: "Pair") -> float:
    logit = 0.3 * ((c - p.ref_c) - (r - p.ref_r)) - 0.4 * p.margin
    return -0.8 * math.log(sigmoid(logit)) - 0.2 * math.log(sigmoid(-logit))


def dpop_by_hand(c: float, r: float, p: "Pair") -> float:
    delta = (c - p.ref_c) - (r - p.ref_r)
    return -math.log(sigmoid(0.3 * (delta - 0.2 * max(0.0, p.ref_c - c))))


def kto_by_hand(c: float, r: float, p: "Pair") -> float:
    """kl of the chosen side 0.4, of the rejected side -0.3, which counts as 0."""
    chosen = 1 - sigmoid(0.3 * ((c - p.ref_c) - 0.0))
    rejected = 1 - sigmoid(0.3 * (0.4 - (r - p.ref_r)))
    return (1.2 * chosen + 0.7 * rejected) / 2


def orpo_by_hand(c: float, r: float, p: "Pair") -> float:
    chosen, rejected = math.exp(c / p.num_c), math.exp(r / p.num_r)
    return -math.log(sigmoid(math.log((chosen / (1 - chosen)) / (rejected / (1 - rejected)))))


def simpo_by_hand(c: float, r: float, p: "Pair") -> float:
    return -math.log(sigmoid(2.0 * c / p.num_c - 2.0 * r / p.num_r - 0.6))


def ipo_by_hand(c: float, r: float, p: "Pair") -> float:
    return ((c - p.ref_c) / p.num_c - (r - p.ref_r) / p.num_r - 1 / 0.6) ** 2


def apo_down_by_hand(c: float, r: float, p: "Pair") -> float:
    """Eq. 8 of the paper: sigma(beta r_w) - sigma(beta (r_w - r_l)), and 1, which changes no gradient."""
    return sigmoid(0.3 * (c - p.ref_c)) + 1 - sigmoid(0.3 * ((c - p.ref_c) - (r - p.ref_r)))


class Pair:
    """One pair's numbers."""

    def __init__(self, pairs: PairLogProbs, index: int) -> None:
        numbers = [item[index].item() for item in pairs[:7] if item is not None]
        self.c, self.r, self.ref_c, self.ref_r, self.num_c, self.num_r, self.margin = numbers


BY_HAND: list[tuple[str, dict[str, Any], Callable[[float, float, Pair], float]]] = [
    ("sigmoid", {"beta": 0.3, "offset": 0.4, "label_smoothing": 0.2}, dpo_by_hand),
    ("dpop", {"beta": 0.3, "dpop_weight": 0.2}, dpop_by_hand),
    ("kto_pair", {"beta": 0.3, "kto_chosen_weight": 1.2, "kto_rejected_weight": 0.7}, kto_by_hand),
    ("orpo", {"reference": "none"}, orpo_by_hand),
    ("simpo", {"beta": 2.0, "simpo_margin": 0.6, "reference": "none"}, simpo_by_hand),
    ("ipo", {"beta": 0.3}, ipo_by_hand),
    ("apo_down", {"beta": 0.3}, apo_down_by_hand),
]


@pytest.mark.parametrize(("name", "settings", "formula"), BY_HAND, ids=[name for name, _, _ in BY_HAND])
def test_by_hand(name: str, settings: dict[str, Any], formula: Callable[[float, float, Pair], float]) -> None:
    """Values, and gradients by differences of the hand-written formula."""
    pairs, step = random_pairs(), 1e-6
    losses = LOSSES[name](pairs, config_of(name, **settings))
    gradients = torch.autograd.grad(losses.sum(), [pairs.chosen_B, pairs.rejected_B])
    for index in range(len(losses)):
        p = Pair(pairs, index)
        assert losses[index].item() == pytest.approx(formula(p.c, p.r, p), rel=1e-10)
        by_chosen = (formula(p.c + step, p.r, p) - formula(p.c - step, p.r, p)) / (2 * step)
        by_rejected = (formula(p.c, p.r + step, p) - formula(p.c, p.r - step, p)) / (2 * step)
        assert gradients[0][index].item() == pytest.approx(by_chosen, rel=1e-5, abs=1e-9)
        assert gradients[1][index].item() == pytest.approx(by_rejected, rel=1e-5, abs=1e-9)


# ---- TRL


def our_result(name: str, data: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Loss and gradient by token, from the same token log-probabilities. TRL's CPO and ORPO trainers have no reference."""
    settings, trainer, _ = CASES[name]
    leaf = data["logprobs"].clone().requires_grad_()
    sums, lengths = (leaf * data["mask"]).sum(1), data["mask"].sum(1)
    reference = (data["reference"] * data["mask"]).sum(1)
    config = PreferenceConfig(**{**settings, "losses": tuple(settings["losses"])})
    if trainer in ("cpo", "orpo"):
        reference = torch.zeros_like(reference)
    pairs = PairLogProbs(*sums.chunk(2), *reference.chunk(2), *lengths.chunk(2), torch.zeros(NUM_PAIRS), _kl())
    loss = preference_loss(pairs, whole(NUM_PAIRS, float(lengths[:NUM_PAIRS].sum())), config).loss
    return loss.item(), torch.autograd.grad(loss, [leaf])[0]


def _kl() -> Tensor:
    return torch.full((2,), KTO_KL, dtype=torch.float64)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_equals_trl(golden: dict[str, Any], name: str) -> None:
    """KTO of both sides against one baseline, as TRL has it for answers that are no pairs. TRL's ORPO is fp32 inside."""
    assert golden["trl"] == "1.16.0"
    data = {key: torch.tensor(value, dtype=torch.float64) for key, value in golden["inputs"].items()}
    loss, gradient = our_result(name, data)
    tolerance = 1e-6 if name == "orpo" else 1e-9
    assert loss == pytest.approx(golden["results"][name]["loss"], rel=tolerance)
    expected = torch.tensor(golden["results"][name]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=10 * tolerance, atol=1e-3 * tolerance)


def test_golden_values_are_those_of_trl_where_it_is_installed(golden: dict[str, Any]) -> None:
    trl = pytest.importorskip("trl")
    if trl.__version__ != golden["trl"]:
        pytest.skip(f"trl {trl.__version__} is installed; the values are of {golden['trl']}")
    for name, result in trl_preference.results().items():
        assert result["loss"] == pytest.approx(golden["results"][name]["loss"], rel=1e-6), name


# ---- what must hold for all


@pytest.mark.parametrize("name", LOSSES)
def test_shards_add_up_to_the_step(name: str) -> None:
    config = config_of(name, sft_weight=0.3, reference="precomputed" if NEEDS_REFERENCE[name] else "none")

    def run(shards: list[slice]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, float]]:
        pairs = random_pairs(8)
        weights = PairWeights(pair=1 / 8, token=1 / float(pairs.chosen_lengths_B.sum()), share=1 / len(shards))
        losses: list[Loss] = []
        for shard in shards:
            part = PairLogProbs(*(item[shard] for item in pairs[:7] if item is not None), pairs.kl_2)
            losses.append(preference_loss(part, weights, config))
        total = torch.stack([loss.loss for loss in losses]).sum()
        sums = {key: [sum(float(loss.metrics[key][i]) for loss in losses) for i in (0, 1)] for key in losses[0].metrics}
        metrics = {key: value / count for key, (value, count) in sums.items()}
        return total, torch.autograd.grad(total, [pairs.chosen_B, pairs.rejected_B]), metrics

    one, several = run([slice(8)]), run([slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8)])
    torch.testing.assert_close(one[:2], several[:2])
    assert one[2] == pytest.approx(several[2])
    assert one[2]["loss"] == pytest.approx(one[0].item())


def test_the_reference_itself_has_loss_log_2_and_no_margin() -> None:
    pairs = random_pairs()
    pairs = pairs._replace(reference_chosen_B=pairs.chosen_B.detach(), reference_rejected_B=pairs.rejected_B.detach())
    loss = preference_loss(pairs, whole(6), PreferenceConfig())
    assert loss.loss.item() == pytest.approx(math.log(2))
    means = {name: float(value) / count for name, (value, count) in loss.metrics.items()}
    assert means["margin"] == means["reward_chosen"] == 0
    assert means["accuracy"] == 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_along_the_gradient_widens_the_margin(name: str) -> None:
    pairs = random_pairs()
    config = config_of(name, reference="precomputed" if NEEDS_REFERENCE[name] else "none")
    near = pairs._replace(reference_chosen_B=pairs.chosen_B.detach(), reference_rejected_B=pairs.rejected_B.detach())
    chosen, rejected = torch.autograd.grad(LOSSES[name](near, config).sum(), [pairs.chosen_B, pairs.rejected_B])
    assert (chosen - rejected < 0).all()
    assert (rejected > 0).all()


def test_unpaired_kto_equals_the_paper() -> None:
    config = config_of("kto_pair", beta=0.5, kto_rejected_weight=2.0)
    ratio, kl = torch.tensor([1.0, -2.0]), torch.tensor(0.3)
    assert kto_loss(ratio, kl, True, config).tolist() == pytest.approx([1 - sigmoid(0.35), 1 - sigmoid(-1.15)])
    assert kto_loss(ratio, kl, False, config).tolist() == pytest.approx([2 - 2 * sigmoid(-0.35), 2 - 2 * sigmoid(1.15)])


def test_certain_answers_break_nothing() -> None:
    """Probabilities of 1 and of nearly 0 by token: the odds have poles there."""
    pairs = random_pairs(3)
    sure = torch.tensor([0.0, -1e-9, -3000.0], dtype=torch.float32, requires_grad=True)
    pairs = pairs._replace(chosen_B=sure, rejected_B=torch.flip(sure, [0]))
    for name in LOSSES:
        losses = LOSSES[name](pairs, config_of(name, reference="precomputed" if NEEDS_REFERENCE[name] else "none"))
        assert losses.isfinite().all(), name
        assert torch.autograd.grad(losses.sum(), [sure])[0].isfinite().all(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": ("dpo",)}, "losses ('dpo') must be of sigmoid, robust"),
        ({"losses": ("ipo:x",)}, "losses ('ipo:x') must be NAME or NAME:WEIGHT"),
        ({"losses": ()}, "losses (none) must name one"),
        ({"beta": 0.0}, "beta (0.0) must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing (0.5) must be at least 0 and below 0.5"),
        ({"losses": ("ipo",), "label_smoothing": 0.1}, "is read only by sigmoid, robust, simpo"),
        ({"losses": ("simpo",), "length_normalised": True}, "length_normalised (True) is read only by"),
        ({"reference": "none"}, "does not do for sigmoid"),
        ({"reference": "old"}, "reference ('old') must be one of precomputed"),
        ({"sft_weight": -1.0}, "sft_weight (-1.0) must be at least 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PreferenceConfig(**settings)
    assert message in str(error.value)
