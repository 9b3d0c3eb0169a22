"""How many tokens each expert has had since the start, counted on the device.

Knows nothing about requests or about who asks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ernie45.model.moe import RouterOutput


class ExpertLoad:
    """Tokens of each expert of each MoE layer, by pool. Adding a step costs two small kernels a pool and no host copy."""

    def __init__(self) -> None:
        self._totals_LE: dict[str, Tensor] = {}

    def add(self, routers: Sequence[Sequence[RouterOutput]]) -> None:
        """Count a step. routers: for each MoE layer, one output a pool."""
        for layers in zip(*routers, strict=True):
            pool = layers[0].pool
            if not len(layers[0].experts_RA) and pool in self._totals_LE:
                continue  # no token for this pool in the whole step: known on the host
            counts_LE = torch.stack([router.tokens_per_expert_E for router in layers])
            total_LE = self._totals_LE.get(pool)
            if total_LE is None:
                self._totals_LE[pool] = counts_LE
            else:
                total_LE += counts_LE

    def tokens(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Pool -> layer -> tokens of each expert. Copies to the host, so it waits for the device: ask seldom.

        Another thread may be adding.
        """
        return {pool: tuple(map(tuple, total_LE.tolist())) for pool, total_LE in tuple(self._totals_LE.items())}
