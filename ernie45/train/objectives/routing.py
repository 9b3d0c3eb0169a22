"""The two router losses, for one pool of one layer and for all of them.

Knows nothing about language or how a step is split. Each pool is judged by tokens of its modality alone. Formulas: ERNIE's
public training code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ernie45.config.train import RouterConfig
from ernie45.model.moe import RouterOutput


def aux_loss(router: RouterOutput) -> Tensor:
    """Load balance: E * sum_e (mean probability of e) * (share of tokens that choose e), 1 * A if perfectly even.

    The share counts the top-A of the uncorrected probabilities, as the correction bias would hide an imbalance; it has no
    gradient. 0 for a pool without tokens.
    """
    probabilities_RE = router.logits_RE.softmax(-1)
    num_rows, num_experts = probabilities_RE.shape
    chosen_RA = probabilities_RE.detach().topk(router.experts_RA.shape[1], dim=-1).indices
    share_E = torch.zeros(num_experts).scatter_add_(0, chosen_RA.flatten(), torch.ones(chosen_RA.numel())) / max(num_rows, 1)
    mean_E = probabilities_RE.sum(0) / max(num_rows, 1)
    return num_experts * (mean_E * share_E.to(mean_E)).sum()


def z_loss(router: RouterOutput) -> Tensor:
    """Mean over tokens of logsumexp(logits) ** 2: keeps gate logits small. 0 for a pool without tokens."""
    return router.logits_RE.logsumexp(-1).square().sum() / max(len(router.logits_RE), 1)


def router_losses(routers: Sequence[Sequence[RouterOutput]], config: RouterConfig, share: float = 1.0) -> Tensor | None:
    """Weighted sum of both losses over layers and pools, times the shard's share of the step; None if both weights are 0."""
    if not (config.aux_weight or config.z_weight):
        return None
    total = torch.zeros(())
    for router in (router for layer in routers for router in layer):
        aux_weight, z_weight = (config.of_pool(name, router.pool) for name in ("aux_weight", "z_weight"))
        if aux_weight:
            total = total + aux_weight * aux_loss(router)
        if z_weight:
            total = total + z_weight * z_loss(router)
    return total * share


def gradient_only(loss: Tensor, extra: Tensor | None) -> Tensor:
    """loss with extra's gradient but without its value, so that reported losses stay comparable."""
    return loss if extra is None else loss + extra - extra.detach()
