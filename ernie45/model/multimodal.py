"""The whole model: embedding, decoder, optional vision tower and resampler, head, optional multi-token prediction.

Knows nothing about text, requests, losses or other ranks. One forward serves training, prefill and decode.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie45.config.model import ModelConfig
from ernie45.model.batch import PackedBatch, VisionBatch
from ernie45.model.cache import CacheStep
from ernie45.model.decoder import DecoderBlock, MTPModule
from ernie45.model.linear import Linear
from ernie45.model.lora import AdapterRows, add_low_rank
from ernie45.model.moe import ExpertPool, Router, RouterOutput
from ernie45.model.norm import RMSNorm
from ernie45.model.resampler import Resampler
from ernie45.model.vision import VisionTower
from ernie45.ops import decode
from ernie45.ops.rope import decoder_rope_table


class ModelOutput(NamedTuple):
    """hidden_TD: last hidden states after the final norm. routers: for each MoE layer, one RouterOutput a pool.

    pre_norm_TD: the same before the final norm, which is what multi-token prediction continues from.
    """

    hidden_TD: Tensor
    routers: list[list[RouterOutput]]
    pre_norm_TD: Tensor


class ErnieModel(nn.Module):
    """Any member of the ERNIE 4.5 family; text-only and dense models are the same code with other configs.

    dtype applies to all parameters but the routers, which are fp32 always. Parameters are initialised by
    `init_weights`, except on device "meta", where nothing is allocated.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        # Built on meta first: torch's own layers would otherwise draw initial values that are thrown away.
        with torch.device("meta"), _default_dtype(dtype):
            self._build(config)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            self.init_weights()

    def _build(self, config: ModelConfig) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderBlock(config, layer, is_moe=config.is_moe_layer(layer)) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vision_model = VisionTower(config.vision) if config.vision is not None else None
        self.resampler_model = Resampler(config) if config.vision is not None else None
        # A prediction module has its own keys and values, after those of the layers.
        self.mtp = nn.ModuleList(MTPModule(config, config.num_layers + depth) for depth in range(config.num_mtp_layers))

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def head(self) -> nn.Embedding | nn.Linear:
        """What owns the output embedding [V, D]: the input embedding if they are tied."""
        return self.embed_tokens if self.lm_head is None else self.lm_head

    @property
    def head_weight(self) -> Tensor:
        """The output embedding [V, D]."""
        return self.head.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal with std sqrt(1 / (3 * hidden)) for matrices, as in Baidu's VL code; ones and zeros elsewhere.

        The vision tower and the resampler take their own widths. Correction biases start at 0.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Linear):
                _fill_normal(module.weight, module.in_features, generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                _fill_normal(module.weight, module.embedding_dim, generator)
            elif isinstance(module, Router):
                _fill_normal(module.weight, module.weight.shape[1], generator)
                module.correction_bias.zero_()
            elif isinstance(module, ExpertPool):
                _fill_normal(module.gate_up_weight, module.gate_up_weight.shape[-1], generator)
                _fill_normal(module.down_weight, module.down_weight.shape[-1], generator)

    def encode_vision(self, vision: VisionBatch, adapters: tuple[AdapterRows, ...] = ()) -> Tensor:
        """Resampler output [R, D]: one row a placeholder token, in the order of the pictures.

        adapters: those of the step; one that changes tower or resampler must serve all of it.
        """
        assert self.vision_model is not None, "this model has no vision tower"
        assert self.resampler_model is not None, "this model has no resampler"
        features_PC = self.vision_model(vision.patches_PC, vision.grids, adapters)
        return self.resampler_model(features_PC, vision.grids, adapters)

    def embed(self, batch: PackedBatch, features_RD: Tensor | None = None) -> Tensor:
        """Token embeddings [T, D] with the placeholder rows replaced by visual features, encoded here unless given."""
        x_TD = self.embed_tokens(batch.token_ids_T)
        if batch.feature_rows_R is None:
            return x_TD
        if features_RD is None:
            assert batch.vision is not None, "placeholder rows but neither pictures nor features"
            features_RD = self.encode_vision(batch.vision, batch.adapters)
        assert len(features_RD) == len(batch.feature_rows_R), (features_RD.shape, batch.feature_rows_R.shape)
        return x_TD.index_copy(0, batch.feature_rows_R, features_RD.to(x_TD.dtype))

    def rope(self, batch: PackedBatch) -> Tensor:
        """The decoder's rotations for this step."""
        config = self.config
        return decoder_rope_table(batch.positions_TX, config.head_dim, config.rope_theta, config.mrope_section)

    def forward(self, batch: PackedBatch, cache: CacheStep | None = None, features_RD: Tensor | None = None) -> ModelOutput:
        """Hidden states of all packed tokens.

        Without a cache every sequence is whole and attends to itself. With one, the batch holds the new tokens of each
        sequence, whose keys and values are written to the cache: whole prefill, chunks and decode are the same call.
        """
        x_TD = self.embed(batch, features_RD)
        rope = self.rope(batch)
        routers = []
        for block in self.layers:
            x_TD, block_routers = block(x_TD, rope, batch, cache)
            if block_routers:
                routers.append(block_routers)
        return ModelOutput(self.norm(x_TD), routers, x_TD)

    def logits(self, hidden_RD: Tensor, adapters: tuple[AdapterRows, ...] = ()) -> Tensor:
        """Head: [R, D] -> [R, V] in the model's dtype. Choose the rows first; the vocabulary is wide.

        adapters: those of these rows, by their places among them.
        """
        linear = decode.linear if decode.serves(hidden_RD) else F.linear
        return add_low_rank(linear(hidden_RD, self.head_weight), hidden_RD, self.head, adapters)

    def predict_ahead(
        self, depth: int, next_ids_T: Tensor, previous_TD: Tensor, batch: PackedBatch, cache: CacheStep | None = None
    ) -> ModelOutput:
        """Multi-token prediction module `depth`: hidden states for the token after next.

        next_ids_T: token t + 1 for each row t (any id on a sequence's last row; its output has no label).
        previous_TD: pre_norm_TD of the model (depth 0) or of the module before. cache: as in `forward`; it must have been made
        `with_mtp`. A next token that is a visual placeholder has its own embedding here: `predict_ahead_from` takes features.
        """
        return self.predict_ahead_from(depth, self.embed_tokens(next_ids_T), previous_TD, batch, cache)

    def predict_ahead_from(
        self, depth: int, next_TD: Tensor, previous_TD: Tensor, batch: PackedBatch, cache: CacheStep | None = None
    ) -> ModelOutput:
        """The same from the embeddings of tokens t + 1 (`embed`, so visual features are among them)."""
        module = self.mtp[depth]
        assert isinstance(module, MTPModule)
        x_TD = module(next_TD, previous_TD, self.rope(batch), batch, cache)
        return ModelOutput(self.norm(x_TD), [], x_TD)


def _fill_normal(weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    weight.normal_(0.0, math.sqrt(1 / (3 * fan_in)), generator=generator)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
