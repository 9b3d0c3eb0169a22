"""Paged keys and values, and how one step addresses them.

Knows nothing about which request owns a page; the scheduler does. A cache is an argument of the model, never its state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ernie45.config.model import ModelConfig


class PagedKVCache:
    """Key and value pages of all layers: two tensors [L, N, S, J, K] in the given dtype.

    with_mtp: of the multi-token-prediction modules too, behind the layers; needed only by an engine that guesses with them.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_mtp: bool = False,
    ) -> None:
        shape = (_num_layers(config, with_mtp), num_pages, page_size, config.num_kv_heads, config.head_dim)
        self.num_pages = num_pages
        self.page_size = page_size
        self.keys_LNSJK = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LNSJK = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages together."""
        return self.keys_LNSJK.nbytes + self.values_LNSJK.nbytes

    @staticmethod
    def bytes_per_page(config: ModelConfig, page_size: int, dtype: torch.dtype, with_mtp: bool = False) -> int:
        """Bytes one page takes over all layers, keys and values together."""
        return 2 * _num_layers(config, with_mtp) * page_size * config.num_kv_heads * config.head_dim * dtype.itemsize


def _num_layers(config: ModelConfig, with_mtp: bool) -> int:
    return config.num_layers + (config.num_mtp_layers if with_mtp else 0)


@dataclass(frozen=True, kw_only=True)
class CacheStep:
    """Where one step's new tokens are written and what they may see.

    slots_T: int64 [T], page * page_size + offset of each new token of the batch.
    page_table_BN: int64 [B, N], pages of each sequence in order, rows padded with 0.
    context_lens: host integers, tokens of each sequence in its pages after this step.
    """

    cache: PagedKVCache
    slots_T: Tensor
    page_table_BN: Tensor
    context_lens: tuple[int, ...]

    def write(self, layer: int, k_TJK: Tensor, v_TJK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values of a layer; returns that layer's pages, each [N, S, J, K]."""
        keys_NSJK, values_NSJK = self.cache.keys_LNSJK[layer], self.cache.values_LNSJK[layer]
        keys_NSJK.flatten(0, 1).index_copy_(0, self.slots_T, k_TJK)
        values_NSJK.flatten(0, 1).index_copy_(0, self.slots_T, v_TJK)
        return keys_NSJK, values_NSJK
