"""TRL's own preference and reward losses on given token log-probabilities: what ours are compared with.

Needs trl; run as a program it writes `preference.json` beside itself, with the version that made it:

    python -m tests.golden.trl_preference

Knows nothing about ernie45's losses. Each loss is computed by the trainer's own method on a stand-in for the trainer, so no
formula is written here.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("preference.json")
NUM_PAIRS, NUM_TOKENS = 5, 7

# name -> (our settings, TRL's trainer, TRL's settings)
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sigmoid": ({"losses": ["sigmoid"], "beta": 0.3}, "dpo", {"loss_types": ["sigmoid"], "beta": 0.3}),
    "sigmoid_norm": (
        {"losses": ["sigmoid"], "beta": 2.0, "length_normalised": True},
        "dpo",
        {"loss_types": ["sigmoid_norm"], "beta": 2.0},
    ),
    "robust": (
        {"losses": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
        "dpo",
        {"loss_types": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
    ),
    "ipo": ({"losses": ["ipo"], "beta": 0.4}, "dpo", {"loss_types": ["ipo"], "beta": 0.4}),
    "hinge": ({"losses": ["hinge"], "beta": 0.3}, "dpo", {"loss_types": ["hinge"], "beta": 0.3}),
    "nca_pair": ({"losses": ["nca_pair"], "beta": 0.3}, "dpo", {"loss_types": ["nca_pair"], "beta": 0.3}),
    "sppo_hard": ({"losses": ["sppo_hard"], "beta": 0.3}, "dpo", {"loss_types": ["sppo_hard"], "beta": 0.3}),
    "apo_zero": ({"losses": ["apo_zero"], "beta": 0.3}, "dpo", {"loss_types": ["apo_zero"], "beta": 0.3}),
    "apo_down": ({"losses": ["apo_down"], "beta": 0.3}, "dpo", {"loss_types": ["apo_down"], "beta": 0.3}),
    "sigmoid+sft": (
        {"losses": ["sigmoid"], "sft_weight": 0.7},
        "dpo",
        {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.1},
    ),
    "mixture": (
        {"losses": ["sigmoid:0.8", "ipo:0.2", "nca_pair:0.5"]},
        "dpo",
        {"loss_types": ["sigmoid", "ipo", "nca_pair"], "loss_weights": [0.8, 0.2, 0.5], "beta": 0.1},
    ),
    "simpo": (
        {"losses": ["simpo"], "beta": 2.0, "simpo_margin": 0.6, "reference": "none"},
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6},
    ),
    "simpo, smoothed": (
        {"losses": ["simpo"], "beta": 2.0, "simpo_margin": 0.6, "label_smoothing": 0.1, "reference": "none"},
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "label_smoothing": 0.1},
    ),
    "sigmoid, smoothed, no reference": (
        {"losses": ["sigmoid"], "beta": 0.3, "label_smoothing": 0.2},
        "cpo",
        {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.2},
    ),
    "orpo": ({"losses": ["orpo:0.4"], "reference": "none"}, "orpo", {"beta": 0.4}),
    "kto": (
        {"losses": ["kto_pair"], "beta": 0.3, "kto_rejected_weight": 1.5},
        "kto",
        {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5},
    ),
}
REWARD_CASES = {
    "reward": ({"centring": 0.0}, None),
    "reward, centred": ({"centring": 0.05}, 0.05),
    "reward, margins": ({"margin_weight": 1.0, "centring": 0.0}, None),
}
KTO_KL = 0.35


def inputs() -> dict[str, Tensor]:
    """Token log-probabilities of NUM_PAIRS chosen answers, then as many rejected ones; answers of 2 to 7 tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (2 * NUM_PAIRS, NUM_TOKENS)
    lengths = torch.randint(2, NUM_TOKENS + 1, (shape[0], 1), generator=generator)
    return {
        "logprobs": -torch.rand(shape, generator=generator, dtype=torch.float64) * 2,
        "reference": -torch.rand(shape, generator=generator, dtype=torch.float64) * 2,
        "mask": (torch.arange(NUM_TOKENS) < lengths).double(),
        "margins": torch.rand(NUM_PAIRS, generator=generator, dtype=torch.float64),
        "rewards": torch.randn(2 * NUM_PAIRS, generator=generator, dtype=torch.float64),
    }


def trl_loss(trainer: str, settings: dict[str, Any], logprobs: Tensor, data: dict[str, Tensor]) -> Tensor:
    """The loss that TRL's trainer of this name gives for token log-probabilities [2 * pairs, tokens], chosen first."""
    masked, mask = logprobs * data["mask"], data["mask"]
    reference = (data["reference"] * mask).sum(1)
    if trainer == "dpo":
        return _dpo(settings, masked, mask, reference)
    if trainer == "kto":
        return _kto(settings, masked, mask, reference)
    sums, lengths = masked.sum(1), mask.sum(1)
    if trainer == "cpo":
        from trl.experimental.cpo.cpo_trainer import CPOTrainer

        own = {"alpha": 0.0, "label_smoothing": 0.0, "accelerator": _Accelerator()} | settings
        scores = sums / lengths if settings["loss_type"] == "simpo" else sums
        return CPOTrainer.cpo_loss(SimpleNamespace(**own), *scores.chunk(2))[0].mean()
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    own = SimpleNamespace(**settings, accelerator=_Accelerator())
    return -ORPOTrainer.odds_ratio_loss(own, *(sums / lengths).chunk(2))[0].mean()


def trl_reward_loss(centring: float | None, rewards: Tensor, margins: Tensor | None) -> Tensor:
    """The loss of TRL's RewardTrainer for rewards [2 * pairs], chosen first."""
    from trl import RewardTrainer

    own = _stand_in(args=SimpleNamespace(center_rewards_coefficient=centring))
    given = {"attention_mask": torch.ones(1)} | ({} if margins is None else {"margin": margins})

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=rewards[:, None])

    return RewardTrainer.compute_loss(own, model, given)


def _dpo(settings: dict[str, Any], masked: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    from trl import DPOTrainer

    chosen, rejected = reference.chunk(2)
    defaults = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0, "loss_weights": [1.0]}
    own = _stand_in(precompute_ref_logps=True, use_weighting=False, **defaults | settings)
    given = _sequences(mask) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return DPOTrainer._compute_loss(own, _Model(masked), given, False)


def _kto(settings: dict[str, Any], masked: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    from trl import KTOTrainer

    own = _stand_in(calculate_KL=True, precompute_ref_logps=True, loss_type="kto", **settings)
    own._compute_kl_logps = lambda model, batch: torch.full((4,), KTO_KL, dtype=torch.float64)
    label = torch.tensor([True] * NUM_PAIRS + [False] * NUM_PAIRS)
    given = _sequences(mask) | {"label": label, "ref_logps": reference, "ref_KL_logps": torch.zeros(4)}
    return KTOTrainer._compute_loss(own, _Model(masked), given, False)


def _sequences(mask: Tensor) -> dict[str, Tensor]:
    """Answers behind a prompt of one token, as TRL's collators give them."""
    whole = torch.cat([torch.zeros(len(mask), 1), mask], 1)
    return {"input_ids": torch.ones_like(whole).long(), "attention_mask": torch.ones_like(whole), "completion_mask": whole}


class _Accelerator:
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather


class _Model:
    """Gives the token log-probabilities, and nothing in what is only logged."""

    training = True

    def __init__(self, logprobs: Tensor) -> None:
        self._outputs = SimpleNamespace(
            log_probs=logprobs,
            entropy=torch.zeros_like(logprobs),
            mean_logits=torch.zeros_like(logprobs),
            is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
        )

    def __call__(self, **_: Any) -> SimpleNamespace:
        return self._outputs


def _stand_in(**attributes: Any) -> Any:
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    model = SimpleNamespace(training=True)
    shared = {"aux_loss_enabled": False, "_total_train_tokens": 0, "_tp_size": 1, "_metrics": metrics, "model": model}
    return SimpleNamespace(accelerator=_Accelerator(), **shared, **attributes)


def results() -> dict[str, Any]:
    """Losses of all cases and their gradients with respect to token log-probabilities, or to rewards."""
    data, found = inputs(), {}
    for name, (_, trainer, settings) in CASES.items():
        leaf = data["logprobs"].clone().requires_grad_()
        loss = trl_loss(trainer, settings, leaf, data)
        [gradient] = torch.autograd.grad(loss, [leaf])
        found[name] = {"loss": loss.item(), "gradient": gradient.tolist()}
    for name, (_, centring) in REWARD_CASES.items():
        leaf = data["rewards"].clone().requires_grad_()
        loss = trl_reward_loss(centring, leaf, data["margins"] if "margins" in name else None)
        [gradient] = torch.autograd.grad(loss, [leaf])
        found[name] = {"loss": loss.item(), "gradient": gradient.tolist()}
    return found


def main() -> None:
    """Write the golden file."""
    import trl

    data = {name: value.tolist() for name, value in inputs().items()}
    GOLDEN.write_text(json.dumps({"trl": trl.__version__, "inputs": data, "results": results()}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
