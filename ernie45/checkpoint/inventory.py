"""The model's own parameters by name: shape, and whether they stay in fp32 whatever the model's type.

Knows nothing about torch, the model's code or files; `load_model` checks that the model and this list agree.
"""

from dataclasses import dataclass

from ernie45.config.model import ModelConfig, VisionConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """`stacked`: the first dim counts experts. `fp32`: routers and their correction biases."""

    shape: Shape
    stacked: bool = False
    fp32: bool = False

    @property
    def matrix(self) -> Shape:
        """Shape of one expert's part, or of the whole."""
        return self.shape[1:] if self.stacked else self.shape


Inventory = dict[str, Parameter]


def inventory(config: ModelConfig) -> Inventory:
    """Every parameter and stored buffer of the model, in the order of computation."""
    hidden = config.hidden_size
    table: Inventory = {"embed_tokens.weight": Parameter(shape=(config.vocab_size, hidden))}
    if config.vision is not None:
        table |= _tower(config.vision) | _resampler(config.vision, hidden)
    for layer in range(config.num_layers):
        table |= _block(config, f"layers.{layer}.", moe=config.is_moe_layer(layer))
    table["norm.weight"] = Parameter(shape=(hidden,))
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Parameter(shape=(config.vocab_size, hidden))
    for index in range(config.num_mtp_layers):
        table |= _mtp(config, f"mtp.{index}.")
    return table


def _block(config: ModelConfig, prefix: str, *, moe: bool) -> Inventory:
    hidden, query = config.hidden_size, config.num_heads * config.head_dim
    fused = query + 2 * config.num_kv_heads * config.head_dim
    table = {
        f"{prefix}input_layernorm.weight": Parameter(shape=(hidden,)),
        f"{prefix}self_attn.qkv_proj.weight": Parameter(shape=(fused, hidden)),
        f"{prefix}self_attn.o_proj.weight": Parameter(shape=(hidden, query)),
        f"{prefix}post_attention_layernorm.weight": Parameter(shape=(hidden,)),
    }
    if not moe:
        return table | _mlp(f"{prefix}mlp.", hidden, config.intermediate_size)
    for pool in config.expert_pools:
        own, count, width = f"{prefix}mlp.pools.{pool.modality}.", pool.num_experts, pool.ffn_size
        table |= {
            f"{own}router.weight": Parameter(shape=(count, hidden), fp32=True),
            f"{own}router.correction_bias": Parameter(shape=(count,), fp32=True),
            f"{own}gate_up_weight": Parameter(shape=(count, 2 * width, hidden), stacked=True),
            f"{own}down_weight": Parameter(shape=(count, hidden, width), stacked=True),
        }
    if config.shared_ffn_size:
        table |= _mlp(f"{prefix}mlp.shared.", hidden, config.shared_ffn_size)
    return table


def _mlp(prefix: str, hidden: int, width: int) -> Inventory:
    return {
        f"{prefix}gate_up_proj.weight": Parameter(shape=(2 * width, hidden)),
        f"{prefix}down_proj.weight": Parameter(shape=(hidden, width)),
    }


def _mtp(config: ModelConfig, prefix: str) -> Inventory:
    """The released module: join of embedding and hidden state, then one block that is dense also in MoE models."""
    hidden = config.hidden_size
    return {
        f"{prefix}emb_norm.weight": Parameter(shape=(hidden,)),
        f"{prefix}hidden_norm.weight": Parameter(shape=(hidden,)),
        f"{prefix}linear_proj.weight": Parameter(shape=(hidden, 2 * hidden)),
        **_block(config, f"{prefix}block.", moe=False),
    }


def _affine(name: str, *shape: int) -> Inventory:
    """Weight and bias; a LayerNorm if `shape` has one number."""
    return {f"{name}.weight": Parameter(shape=shape), f"{name}.bias": Parameter(shape=shape[:1])}


def _tower(vision: VisionConfig) -> Inventory:
    width, ffn = vision.hidden_size, vision.intermediate_size
    table = {"vision_model.patch_embed.weight": Parameter(shape=(width, vision.patch_dim))}
    for index in range(vision.depth):
        block = f"vision_model.blocks.{index}."
        table |= _affine(f"{block}norm1", width) | _affine(f"{block}norm2", width)
        table |= _affine(f"{block}attn.qkv", 3 * width, width) | _affine(f"{block}attn.proj", width, width)
        table |= _affine(f"{block}mlp.fc1", ffn, width) | _affine(f"{block}mlp.fc2", width, ffn)
    return table | _affine("vision_model.ln", width)


def _resampler(vision: VisionConfig, hidden: int) -> Inventory:
    width = vision.hidden_size * vision.spatial_merge_size**2
    table: Inventory = {}
    for name, inputs in (("spatial_linear", width), ("temporal_linear", width * vision.temporal_merge_size)):
        own = f"resampler_model.{name}"
        table |= _affine(f"{own}.fc1", width, inputs) | _affine(f"{own}.fc2", width, width) | _affine(f"{own}.ln", width)
    table |= _affine("resampler_model.mlp", hidden, width)
    return table | {"resampler_model.after_norm.weight": Parameter(shape=(hidden,))}
