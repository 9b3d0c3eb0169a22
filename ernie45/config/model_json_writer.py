"""`ModelConfig` written as the `config.json` of a layout; its twin `model_json` reads it.

Knows nothing about files, tensors or torch.
"""

from ernie45.config.errors import CheckpointError
from ernie45.config.model import ModelConfig, VisionConfig
from ernie45.config.model_json_keys import (
    ARCHITECTURES,
    DENSE,
    FLAT_VL,
    LAYOUT_NAMES,
    MOE,
    NATIVE_VIDEO_TOKEN,
    NATIVE_VL,
    VISION_NORM_EPS,
    VISION_ROPE_THETA,
    Json,
    LayoutName,
)


def config_to_json(config: ModelConfig, layout: LayoutName, *, dtype: str = "bfloat16", video_token: int | None = None) -> Json:
    """The content of `config.json` in that layout; `config_from_json` gives `config` back.

    dtype: name of the weights' type, for readers that ask for it. video_token: id of the video placeholder, which only the
    native layout has; default 103367 where the vocabulary holds it, the image placeholder otherwise (then a reader of the
    native layout can take images or videos in one prompt, not both). CheckpointError for a model the layout cannot describe.
    """
    if layout not in LAYOUT_NAMES:
        raise CheckpointError(f"layout ({layout!r}) must be one of {', '.join(LAYOUT_NAMES)}")
    if config.vision is None:
        return _text_json(config, layout, dtype)
    _check_pools(config)
    if layout != "native":
        return _flat_json(config, config.vision, dtype)
    if video_token is None:
        video_token = NATIVE_VIDEO_TOKEN if config.vocab_size > NATIVE_VIDEO_TOKEN else config.tokens.image_patch
    return _native_json(config, config.vision, dtype, video_token)


def _check_pools(config: ModelConfig) -> None:
    pools = config.expert_pools
    if len(pools) != 2 or len({(pool.num_experts, pool.num_active) for pool in pools}) != 1:
        found = [(pool.modality, pool.num_experts, pool.num_active) for pool in pools]
        raise CheckpointError(
            f"expert_pools {found} cannot be written: the file formats know multimodal models only with a text and a vision "
            "pool that have equal num_experts and num_active; make them equal"
        )


def _num_shared(config: ModelConfig) -> int:
    width = config.expert_pools[0].ffn_size
    if config.shared_ffn_size % width:
        raise CheckpointError(
            f"shared_ffn_size ({config.shared_ffn_size}) cannot be written: config.json counts shared experts, so it must be "
            f"a multiple of the text experts' ffn_size ({width})"
        )
    return config.shared_ffn_size // width


def _decoder_json(config: ModelConfig) -> Json:
    ahead = {"num_nextn_predict_layers": config.num_mtp_layers} if config.num_mtp_layers else {}
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_cache": True,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.tokens.bos,
        "eos_token_id": config.tokens.eos,
        "pad_token_id": config.tokens.pad,
        "sep_token_id": config.tokens.end_of_turn,
        **ahead,
    }


def _vision_ids(config: ModelConfig) -> Json:
    tokens = config.tokens
    return {
        "image_start_token_id": tokens.image_start,
        "image_end_token_id": tokens.image_end,
        "video_start_token_id": tokens.video_start,
        "video_end_token_id": tokens.video_end,
    }


def _text_json(config: ModelConfig, layout: LayoutName, dtype: str) -> Json:
    """Text models: one content for every layout, but for the place of rope_theta."""
    kind = MOE if config.expert_pools else DENSE
    rope: Json = {"rope_theta": config.rope_theta}
    if layout == "native":
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    data = {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "torch_dtype": dtype, **_decoder_json(config), **rope}
    if kind == DENSE:
        return data
    if len(config.expert_pools) != 1:
        raise CheckpointError("a model with vision experts but no vision tower cannot be written; drop its vision pool first")
    (pool,) = config.expert_pools
    return data | {
        "moe_num_experts": pool.num_experts,
        "moe_intermediate_size": pool.ffn_size,
        "moe_k": pool.num_active,
        "moe_num_shared_experts": _num_shared(config),
        "moe_layer_start_index": config.first_moe_layer,
        "moe_layer_end_index": config.num_layers - 1,
        "moe_layer_interval": config.moe_layer_interval,
        "moe_norm_min": config.norm_min,
    }


def _flat_json(config: ModelConfig, vision: VisionConfig, dtype: str) -> Json:
    if (vision.norm_eps, vision.rope_theta) != (VISION_NORM_EPS, VISION_ROPE_THETA):
        raise CheckpointError(
            f"vision norm_eps ({vision.norm_eps}) and rope_theta ({vision.rope_theta}) cannot be written: readers of the flat "
            f"layouts take {VISION_NORM_EPS} and {VISION_ROPE_THETA} whatever the file says; use the native layout"
        )
    return {
        "architectures": [ARCHITECTURES[FLAT_VL]],
        "model_type": FLAT_VL,
        "torch_dtype": dtype,
        **_decoder_json(config),
        "rope_theta": config.rope_theta,
        "rope_3d": True,
        "freq_allocation": config.mrope_section[2],
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": list(config.mrope_section)},
        **_flat_moe_json(config),
        "im_patch_id": config.tokens.image_patch,
        **_vision_ids(config),
        "pixel_hidden_size": vision.hidden_size,
        "spatial_conv_size": vision.spatial_merge_size,
        "temporal_conv_size": vision.temporal_merge_size,
        "use_temporal_conv": True,
        "vision_config": _flat_vision_json(vision),
    }


def _flat_moe_json(config: ModelConfig) -> Json:
    text, image = config.expert_pools
    return {
        "moe_num_experts": [text.num_experts, image.num_experts],
        "moe_intermediate_size": [text.ffn_size, image.ffn_size],
        "moe_k": text.num_active,
        "moe_num_shared_experts": _num_shared(config),
        "moe_layer_start_index": [config.first_moe_layer] * 2,
        "moe_layer_end_index": [config.num_layers - 1] * 2,
        "moe_layer_interval": config.moe_layer_interval,
        "moe_norm_min": config.norm_min,
        "moe_gate": "topk",
        "moe_gate_act": "softmax",
        "moe_norm_gate_logits": True,
        "moe_use_aux_free": True,
        "moe_use_hard_gate": True,
    }


def _flat_vision_json(vision: VisionConfig) -> Json:
    ratio: float = vision.intermediate_size / vision.hidden_size
    if int(vision.hidden_size * ratio) != vision.intermediate_size:
        raise CheckpointError(
            f"vision intermediate_size ({vision.intermediate_size}) cannot be written as a ratio of hidden_size "
            f"({vision.hidden_size}), which the flat layouts have; use the native layout"
        )
    return {
        "model_type": "DFNRope_vision_transformer",
        "depth": vision.depth,
        "embed_dim": vision.hidden_size,
        "hidden_size": vision.hidden_size,
        "num_heads": vision.num_heads,
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "hidden_act": "quick_gelu",
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
    }


def _native_json(config: ModelConfig, vision: VisionConfig, dtype: str, video_token: int) -> Json:
    return {
        "architectures": [ARCHITECTURES[NATIVE_VL]],
        "model_type": NATIVE_VL,
        "dtype": dtype,
        "tie_word_embeddings": config.tie_word_embeddings,
        "image_token_id": config.tokens.image_patch,
        "video_token_id": video_token,
        **_vision_ids(config),
        "text_config": _native_text_json(config),
        "vision_config": {
            "model_type": "ernie4_5_vl_moe_vision",
            "depth": vision.depth,
            "hidden_size": vision.hidden_size,
            "num_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "hidden_act": "quick_gelu",
            "in_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_merge_size": vision.temporal_merge_size,
            "rms_norm_eps": vision.norm_eps,
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
        },
    }


def _native_text_json(config: ModelConfig) -> Json:
    text, image = config.expert_pools
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": list(config.mrope_section)}
    return {
        "model_type": "ernie4_5_vl_moe_text",
        **_decoder_json(config),
        "mlp_layer_types": ["sparse" if config.is_moe_layer(layer) else "dense" for layer in range(config.num_layers)],
        "moe_num_experts": text.num_experts,
        "moe_intermediate_size": [text.ffn_size, image.ffn_size],
        "moe_k": text.num_active,
        "moe_num_shared_experts": _num_shared(config),
        "moe_norm_min": config.norm_min,
        "rope_parameters": rope,
    }
