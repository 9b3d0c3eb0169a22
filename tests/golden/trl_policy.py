"""TRL's own policy losses on given token log-probabilities: what ours are compared with.

Needs trl; run as a program it writes `policy.json` beside itself, with the version that made it:

    python -m tests.golden.trl_policy

Knows nothing about ernie45's losses. Each loss is computed by `GRPOTrainer._compute_loss` on a stand-in for the trainer, so no
formula is written here but that of the engine's ratio, which TRL computes where it generates.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("policy.json")
NUM_SEQUENCES, NUM_TOKENS, MAX_TOKENS = 6, 7, 9

_WIDE = {"clip_low": 0.1, "clip_high": 0.3}
# name -> (our settings, TRL's, whether old log-probabilities are given)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "grpo": ({}, {"loss_type": "grpo"}, True),
    "grpo, kl": ({"kl_weight": 0.2}, {"loss_type": "grpo", "beta": 0.2}, True),
    "grpo, first update": ({"kl_weight": 0.2}, {"loss_type": "grpo", "beta": 0.2}, False),
    "dapo": (
        {"normalise": "token", **_WIDE},
        {"loss_type": "dapo", "epsilon_low": 0.1, "epsilon_high": 0.3},
        True,
    ),
    "dapo, two-sided": (
        {"normalise": "token", "dual_clip": 1.5, **_WIDE},
        {"loss_type": "dapo", "epsilon_low": 0.1, "epsilon_high": 0.3, "delta": 1.5},
        True,
    ),
    "dr_grpo": ({"normalise": "constant"}, {"loss_type": "dr_grpo"}, True),
    "gspo": (
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        True,
    ),
    "grpo, truncated": (
        {"mismatch": "truncate", "mismatch_high": 1.3, "kl_weight": 0.1},
        {"loss_type": "grpo", "beta": 0.1, "engine": ("token", "truncate", None, 1.3)},
        True,
    ),
    "grpo, truncated by sequence": (
        {"mismatch": "truncate", "mismatch_ratio": "sequence", "mismatch_high": 1.3},
        {"loss_type": "grpo", "engine": ("sequence", "truncate", None, 1.3)},
        True,
    ),
    "dapo, masked": (
        {"normalise": "token", "mismatch": "mask", "mismatch_low": 0.7, "mismatch_high": 1.3},
        {"loss_type": "dapo", "engine": ("token", "mask", 0.7, 1.3)},
        True,
    ),
}


def inputs() -> dict[str, Tensor]:
    """Log-probabilities by token, fp64 [sequences, tokens]: of the policy, of it before, a reference, the engine; answers of
    2 to 7 tokens. Rewards of two groups of three."""
    generator = torch.Generator().manual_seed(3)
    shape = (NUM_SEQUENCES, NUM_TOKENS)
    lengths = torch.randint(2, NUM_TOKENS + 1, (NUM_SEQUENCES, 1), generator=generator)
    logprobs = -torch.rand(shape, generator=generator, dtype=torch.float64) * 2

    def near(spread: float) -> Tensor:
        return logprobs + spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "logprobs": logprobs,
        "old": near(0.3),
        "reference": near(0.5),
        "engine": near(0.4),
        "mask": (torch.arange(NUM_TOKENS) < lengths).double(),
        "rewards": torch.tensor([[1.0, 0.0, 0.25], [0.5, 1.0, 1.0]], dtype=torch.float64),
    }


def trl_advantages(rewards_PG: Tensor, scale: bool) -> Tensor:
    """What TRL's trainer makes of rewards, [sequences]: its own `nanstd`, and the two lines around it."""
    from trl.trainer.utils import nanstd

    centred = rewards_PG - torch.nanmean(rewards_PG, dim=1, keepdim=True)
    return (centred / (nanstd(rewards_PG, dim=1)[:, None] + 1e-4) if scale else centred).flatten()


def trl_loss(settings: dict[str, Any], logprobs: Tensor, data: dict[str, Tensor], advantages: Tensor, has_old: bool) -> Tensor:
    """TRL's loss for one step of one process."""
    from trl import GRPOTrainer

    own = {"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "importance_sampling_level": "token"} | settings
    engine, delta = own.pop("engine", None), own.pop("delta", None)
    trainer = SimpleNamespace(
        **own,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=_Accelerator(),
        model=SimpleNamespace(training=True),
        max_completion_length=MAX_TOKENS,
        current_gradient_accumulation_steps=1,
        use_vllm=engine is not None,
        vllm_importance_sampling_correction=engine is not None,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
    )
    mask = data["mask"]
    batch = {
        "prompt_ids": torch.zeros(NUM_SEQUENCES, 1),
        "prompt_mask": torch.ones(NUM_SEQUENCES, 1),
        "completion_ids": torch.zeros(NUM_SEQUENCES, NUM_TOKENS),
        "completion_mask": mask,
        "advantages": advantages,
        "ref_per_token_logps": data["reference"],
        "num_items_in_batch": mask.sum(),
    }
    if has_old:
        batch["old_per_token_logps"] = data["old"]
    if engine is not None:
        batch["importance_sampling_ratio"] = _engine_ratio(data, *engine)
    return GRPOTrainer._compute_loss(trainer, None, batch)  # type: ignore[arg-type]


def _engine_ratio(data: dict[str, Tensor], level: str, mode: str, low: float | None, high: float) -> Tensor:
    """As in `GRPOTrainer._generate_and_score_completions`."""
    difference = (data["old"] - data["engine"]) * data["mask"]
    ratio = (difference.sum(-1, keepdim=True) if level == "sequence" else difference).exp()
    if mode == "truncate":
        return ratio.clamp(min=low, max=high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


class _Accelerator:
    num_processes = 1
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def main() -> None:
    import trl

    data = inputs()
    golden: dict[str, Any] = {"trl": trl.__version__, "cases": {}}
    golden["advantages"] = {
        name: trl_advantages(data["rewards"], scale).tolist() for name, scale in (("group", True), ("group_mean", False))
    }
    advantages = trl_advantages(data["rewards"], True)
    for name, (_, settings, has_old) in CASES.items():
        logprobs = data["logprobs"].clone().requires_grad_()
        loss = trl_loss(settings, logprobs, data, advantages, has_old)
        loss.backward()
        assert logprobs.grad is not None
        golden["cases"][name] = {"loss": loss.item(), "grad": logprobs.grad.tolist()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
