"""One decoder block and the multi-token-prediction module.

Knows nothing about pictures; a visual token is a row like any other.
"""

from torch import Tensor, cat, nn

from ernie45.config.model import ModelConfig
from ernie45.model.attention import SelfAttention
from ernie45.model.batch import PackedBatch
from ernie45.model.cache import CacheStep
from ernie45.model.linear import Linear
from ernie45.model.moe import FeedForward, HeterogeneousMoE, RouterOutput
from ernie45.model.norm import RMSNorm


class DecoderBlock(nn.Module):
    """Pre-norm block: x += attention(norm x); x += feed-forward(norm x). `layer` is its place in the cache."""

    def __init__(self, config: ModelConfig, layer: int, *, is_moe: bool) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        if is_moe:
            self.mlp: HeterogeneousMoE | FeedForward = HeterogeneousMoE(config, sum(map(config.is_moe_layer, range(layer))))
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_TD: Tensor, rope: Tensor, batch: PackedBatch, cache: CacheStep | None
    ) -> tuple[Tensor, list[RouterOutput]]:
        """x [T, D] -> ([T, D], router outputs, empty for a dense block)."""
        normed_TD = self.input_layernorm(x_TD)
        x_TD = x_TD + self.self_attn(normed_TD, rope, batch.cu_seqlens, self.layer, cache, batch.adapters)
        normed_TD = self.post_attention_layernorm(x_TD)
        if isinstance(self.mlp, HeterogeneousMoE):
            y_TD, routers = self.mlp(normed_TD, batch)
            return x_TD + y_TD, routers
        return x_TD + self.mlp(normed_TD, batch.adapters), []


class MTPModule(nn.Module):
    """Predicts one token further: h' = block(proj([norm(embedding of the next token); norm(h)])).

    The embedding comes first; the block is dense, as in public loaders of the released files. Its output goes through the
    model's own final norm and head. Source: DeepSeek-V3's multi-token prediction as in ERNIE 4.5's public training code
    (depth 1, loss weight 0.1).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.emb_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.linear_proj = Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = DecoderBlock(config, layer, is_moe=False)

    def forward(
        self,
        next_embeddings_TD: Tensor,
        hidden_TD: Tensor,
        rope: Tensor,
        batch: PackedBatch,
        cache: CacheStep | None = None,
    ) -> Tensor:
        """Embeddings of tokens t + 1 and hidden states of tokens t, both [T, D] -> [T, D]."""
        joined = cat((self.emb_norm(next_embeddings_TD), self.hidden_norm(hidden_TD)), dim=-1)
        return self.block(self.linear_proj(joined), rope, batch, cache)[0]
