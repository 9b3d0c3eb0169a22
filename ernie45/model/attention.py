"""The decoder's grouped-query self-attention.

Knows nothing about how positions were made or who owns the pages.
"""

from torch import Tensor, nn

from ernie45.config.model import ModelConfig
from ernie45.model.cache import CacheStep
from ernie45.model.linear import Linear
from ernie45.model.lora import AdapterRows, add_low_rank
from ernie45.ops import decode
from ernie45.ops.self_attention import Heads, attend_pages, rotated, self_attention


class SelfAttention(nn.Module):
    """Queries, keys and values from one fused projection (rows q | k | v), interleaved rope, causal attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, rows, bias=False)
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        x_TD: Tensor,
        rope: Tensor,
        cu_seqlens: tuple[int, ...],
        layer: int,
        cache: CacheStep | None,
        adapters: tuple[AdapterRows, ...] = (),
    ) -> Tensor:
        """x [T, D] -> [T, D]. With a cache the new keys and values are written to it first, then all of it is read."""
        if cache is not None and len(x_TD) == len(cache.context_lens) and decode.serves(x_TD):
            return self._decode(x_TD, rope, layer, cache, adapters)
        qkv_TW = add_low_rank(self.qkv_proj(x_TD), x_TD, self.qkv_proj, adapters)
        heads = Heads(self.num_heads, self.num_kv_heads)
        if cache is None:
            out_TW = self_attention(qkv_TW, rope, heads, cu_seqlens)
            return add_low_rank(self.o_proj(out_TW), out_TW, self.o_proj, adapters)
        q_THK, k_TJK, v_TJK = rotated(qkv_TW, rope, heads)
        pages = cache.write(layer, k_TJK, v_TJK)
        out_TW = attend_pages(q_THK, pages, cache.page_table_BN, cu_seqlens, cache.context_lens).flatten(1)
        return add_low_rank(self.o_proj(out_TW), out_TW, self.o_proj, adapters)

    def _decode(self, x_TD: Tensor, rope: Tensor, layer: int, cache: CacheStep, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """One new token for each sequence, through the compiled kernels."""
        pages = (cache.cache.keys_LNSJK[layer], cache.cache.values_LNSJK[layer])
        qkv_TW = add_low_rank(decode.linear(x_TD, self.qkv_proj.weight), x_TD, self.qkv_proj, adapters)
        places = decode.Places(cache.slots_T, cache.page_table_BN, cache.context_lens)
        out_TW = decode.attention(qkv_TW, rope, self.num_heads, pages, places)
        return add_low_rank(decode.linear(out_TW, self.o_proj.weight), out_TW, self.o_proj, adapters)
