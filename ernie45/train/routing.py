"""Upkeep of the routers after each optimiser step: the orthogonal step and the correction bias.

Knows nothing about losses or processes: usage counts come in already summed over all of them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ernie45.model.moe import ExpertPool, Router, RouterOutput
from ernie45.model.multimodal import ErnieModel


def pools_of(model: ErnieModel) -> Iterator[tuple[str, ExpertPool]]:
    """Every expert pool with its name, in the order of `RouterOutput`s: by layer, then by pool."""
    for name, module in model.named_modules():
        if isinstance(module, ExpertPool):
            yield name, module


def orthogonal_loss(weight_ED: Tensor) -> Tensor:
    """|W^ W^T - I|^2 / E^2 with the rows of W^ scaled to length 1: 0 when no two experts' gates point the same way."""
    normed_ED = weight_ED / weight_ED.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    gram_EE = normed_ED @ normed_ED.T
    return (gram_EE - torch.eye(len(weight_ED), device=weight_ED.device)).square().mean()


def orthogonal_gradient(weight_ED: Tensor) -> Tensor:
    """Gradient of `orthogonal_loss` in closed form."""
    norm_E1 = weight_ED.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    normed_ED = weight_ED / norm_E1
    num_experts = len(weight_ED)
    excess_EE = normed_ED @ normed_ED.T - torch.eye(num_experts, device=weight_ED.device)
    by_normed_ED = 4 / num_experts**2 * excess_EE @ normed_ED
    return (by_normed_ED - (by_normed_ED * normed_ED).sum(-1, keepdim=True) * normed_ED) / norm_E1


@torch.no_grad()
def orthogonal_step(router: Router, lr: float, weight: float) -> None:
    """W <- W - lr * weight * gradient for the gate of one pool: text and vision apart.

    Decoupled from the optimiser, as in ERNIE's public code: adaptive moments would rescale it.
    """
    router.weight.sub_(lr * weight * orthogonal_gradient(router.weight))


def usage_of(routers: Sequence[Sequence[RouterOutput]]) -> list[Tensor]:
    """Tokens per expert [E] of every pool, in the order of `pools_of`.

    Read from the outputs and not counted inside the model, where recomputation would count twice.
    """
    return [router.tokens_per_expert_E for layer in routers for router in layer]


@torch.no_grad()
def balance_step(router: Router, usage_E: Tensor, rate: float) -> None:
    """b <- b + rate * sign(mean usage - usage): an expert with too few tokens is chosen more often from now on."""
    usage_E = usage_E.to(router.correction_bias)
    router.correction_bias.add_(torch.sign(usage_E.mean() - usage_E), alpha=rate)


def max_violation(usage_E: Tensor) -> float:
    """How much the busiest expert is above the mean, as a share of it; 0 is perfect balance."""
    mean = float(usage_E.float().mean())
    return float(usage_E.max()) / mean - 1 if mean else 0.0
