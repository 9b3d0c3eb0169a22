"""The experts that each token of the KV cache was given, kept beside its keys and values, for training to replay.

Knows nothing about models or trainers. A page that is found in the prefix cache brings its tokens' experts with it.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ernie45.engine.chunks import Chunk
from ernie45.engine.request import Request


class RoutingRecord:
    """Experts int16 [slots, L, A] on the host, L MoE layers; -1 where a pool has fewer active experts than A.

    Requests take the experts of their tokens from it as they are computed. Costs one copy to the host a step.
    """

    def __init__(self, num_pages: int, page_size: int, num_layers: int, num_active: int) -> None:
        self._experts_NLA = np.full((num_pages * page_size, num_layers, num_active), -1, dtype=np.int16)
        self._page_size = page_size

    def add(self, chunks: Sequence[Chunk], slots_T: torch.Tensor, experts_TLA: torch.Tensor) -> None:
        """Keep a step's experts, and give each request those of its chunk and of what it found in the cache before it."""
        experts = experts_TLA.cpu().numpy()
        self._experts_NLA[slots_T.cpu().numpy()] = experts
        row = 0
        for request, start, end, _ in chunks:
            known = request.routing
            if known is None:
                known = request.routing = []
            num_known = known[-1][0] + len(known[-1][1]) if known else 0
            if start > num_known:
                known.append((num_known, self._experts_NLA[self._slots(request, num_known, start)]))
            count = end - start + len(request.draft)
            known.append((start, experts[row : row + count]))
            row += count

    def _slots(self, request: Request, start: int, end: int) -> np.ndarray:
        tokens, pages = np.arange(start, end), np.frombuffer(request.pages, dtype=np.int64)
        return pages[tokens // self._page_size] * self._page_size + tokens % self._page_size
