"""How many parameters a model has, part by part, and what they weigh in memory; plain arithmetic on `ModelConfig`.

Knows nothing about torch or checkpoints; a test compares it with the real modules.
"""

from dataclasses import dataclass

from ernie45.config.model import ModelConfig, VisionConfig

BYTES_BF16, BYTES_FP32 = 2, 4
WINT8_BITS, WINT4_BITS = 8.0, 4.0
CCQ_BITS = 2 + 4 / 64  # four 6-bit values in one byte and a 4-bit scale for every 64 weights
WINT_CHANNEL_BYTES = 2  # one bf16 scale per output channel
CCQ_CHANNEL_BYTES = 10  # bf16 super scale, fp32 code scale and fp32 code zero point


@dataclass(frozen=True, kw_only=True)
class Part:
    """One row of the table.

    num_active: parameters that one token of the part's modality multiplies with (all of them unless the part is routed).
    num_channels: output rows of its matrices; a per-channel quantisation stores one scale for each.
    modality: "text" or "vision" for what only such tokens use, None for what every token uses.
    kind: "routed", "linear" (decoder matrices), "router" (kept in fp32) or "other" (kept in bf16).
    """

    name: str
    num_params: int
    num_active: int
    num_channels: int = 0
    modality: str | None = None
    kind: str = "other"


def parameter_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Every parameter and buffer of the model, once; empty parts are left out. Largest part first."""
    parts = [*_routed_experts(config), *_decoder(config)]
    if config.vision is not None:
        parts += [_tower(config.vision), _resampler(config.vision, config.hidden_size)]
    return tuple(sorted((part for part in parts if part.num_params), key=lambda part: -part.num_params))


def count_parameters(config: ModelConfig) -> int:
    """All parameters, correction biases included."""
    return sum(part.num_params for part in parameter_parts(config))


def count_active(config: ModelConfig, modality: str = "text") -> int:
    """Parameters of the decoder that one token of that modality passes, routers of both pools and the embedding included.

    The vision tower and the resampler are not counted: they run once per picture. A multi-token-prediction layer is not
    counted either: it only drafts.
    """
    decoder = (part for part in parameter_parts(config) if part.name not in ("ViT", "resampler", "multi-token prediction"))
    return sum(part.num_active for part in decoder if part.modality in (None, modality))


def context_of_double(config: ModelConfig) -> int:
    """Tokens of context behind which a text token costs twice what it costs without.

    Its attention, 4 * layers * heads * head_dim operations for each token before it, is then as much as the 2 operations for
    each weight of its blocks.
    """
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    blocks = max(count_active(config) - embeddings, 1)
    return max(2 * blocks // (4 * config.num_layers * config.num_heads * config.head_dim), 1)


def count_text_only(config: ModelConfig) -> int:
    """Parameters left when vision experts, their routers, tower and resampler are dropped: what a decode instance loads."""
    parts = sum(part.num_params for part in parameter_parts(config) if part.modality != "vision")
    return parts - _router_params(config, "vision")


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: int = BYTES_BF16) -> int:
    """Keys and values of one token over all layers, in bytes."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * bytes_per_value


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Bytes of all weights held in memory at "fp32", "bf16", "8", "4" or "2" bits, scales included.

    bf16: routers stay fp32. 8: all decoder matrices WINT8. 4 and 2: routed experts WINT4 or CCQ, other decoder matrices WINT8.
    Embedding, head, norms, vision tower and resampler stay bf16 and routers fp32 at every precision below fp32.
    """
    return sum(_part_bytes(part, precision) for part in parameter_parts(config))


def _part_bytes(part: Part, precision: str) -> int:
    if precision == "fp32" or part.kind == "router":
        return part.num_params * BYTES_FP32
    if precision == "bf16" or part.kind == "other":
        return part.num_params * BYTES_BF16
    bits, channel_bytes = {
        "8": (WINT8_BITS, WINT_CHANNEL_BYTES),
        "4": (WINT4_BITS, WINT_CHANNEL_BYTES),
        "2": (CCQ_BITS, CCQ_CHANNEL_BYTES),
    }[precision if part.kind == "routed" else "8"]
    return int(part.num_params * bits / 8) + part.num_channels * channel_bytes


def _routed_experts(config: ModelConfig) -> list[Part]:
    hidden, layers, parts = config.hidden_size, config.num_moe_layers, []
    for pool in config.expert_pools:
        expert = 3 * hidden * pool.ffn_size
        parts.append(
            Part(
                name=f"{pool.modality} experts",
                num_params=layers * pool.num_experts * expert,
                num_active=layers * pool.num_active * expert,
                num_channels=layers * pool.num_experts * (2 * pool.ffn_size + hidden),
                modality=pool.modality,
                kind="routed",
            )
        )
    return parts


def _decoder(config: ModelConfig) -> list[Part]:
    hidden, layers = config.hidden_size, config.num_layers
    num_moe = config.num_moe_layers
    routers = sum(_router_params(config, pool.modality) for pool in config.expert_pools)
    vocabulary = config.vocab_size * hidden
    return [
        _linear("shared experts", num_moe * bool(config.shared_ffn_size), _mlp_shapes(hidden, config.shared_ffn_size)),
        _linear("attention", layers, _attention_shapes(config)),
        _linear(_dense_name(config), layers - num_moe, _mlp_shapes(hidden, config.intermediate_size)),
        _linear("multi-token prediction", config.num_mtp_layers, _mtp_shapes(config), num_other=4 * hidden),
        Part(
            name="embedding (tied head)" if config.tie_word_embeddings else "embedding",
            num_params=vocabulary,
            num_active=vocabulary,
        ),
        _every(name="head", num_params=0 if config.tie_word_embeddings else vocabulary),
        _every(name="routers + correction bias", num_params=routers, kind="router"),
        _every(name="norms", num_params=(2 * layers + 1) * hidden),
    ]


def _dense_name(config: ModelConfig) -> str:
    dense = [layer for layer in range(config.num_layers) if not config.is_moe_layer(layer)]
    if not config.expert_pools or not dense:
        return "dense MLP"
    return f"dense MLP layer {dense[0]}" if len(dense) == 1 else f"dense MLP layers {dense[0]}-{dense[-1]}"


def _every(*, name: str, num_params: int, kind: str = "other") -> Part:
    return Part(name=name, num_params=num_params, num_active=num_params, kind=kind)


def _linear(name: str, count: int, shapes: list[tuple[int, int]], num_other: int = 0) -> Part:
    """`count` equal blocks of matrices (rows, columns) and `num_other` parameters that are not matrices in each."""
    num_params = count * (sum(rows * columns for rows, columns in shapes) + num_other)
    num_channels = count * sum(rows for rows, _ in shapes)
    return Part(name=name, num_params=num_params, num_active=num_params, num_channels=num_channels, kind="linear")


def _mlp_shapes(hidden: int, ffn_size: int) -> list[tuple[int, int]]:
    return [(2 * ffn_size, hidden), (hidden, ffn_size)]


def _attention_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    query, both = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    return [(query + both, config.hidden_size), (config.hidden_size, query)]


def _mtp_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """One draft layer: join of embedding and hidden state, then a block with a dense MLP."""
    hidden = config.hidden_size
    return [(hidden, 2 * hidden), *_attention_shapes(config), *_mlp_shapes(hidden, config.intermediate_size)]


def _router_params(config: ModelConfig, modality: str) -> int:
    """Router matrix and correction bias of one pool over all layers."""
    pool = next((pool for pool in config.expert_pools if pool.modality == modality), None)
    return 0 if pool is None else config.num_moe_layers * pool.num_experts * (config.hidden_size + 1)


def _tower(vision: VisionConfig) -> Part:
    width, ffn = vision.hidden_size, vision.intermediate_size
    attention = (3 * width * width + 3 * width) + (width * width + width)
    mlp = (width * ffn + ffn) + (ffn * width + width)
    num_params = vision.patch_dim * width + vision.depth * (attention + mlp + 4 * width) + 2 * width
    return Part(name="ViT", num_params=num_params, num_active=num_params, modality="vision")


def _resampler(vision: VisionConfig, hidden: int) -> Part:
    width = vision.hidden_size * vision.spatial_merge_size**2
    square = width * width + width
    spatial = 2 * square + 2 * width
    temporal = (vision.temporal_merge_size * width * width + width) + square + 2 * width
    num_params = spatial + temporal + (width * hidden + hidden) + hidden
    return Part(name="resampler", num_params=num_params, num_active=num_params, modality="vision")
