"""`config.json` of every ERNIE 4.5 release, read into `ModelConfig` and written back.

Knows nothing about files, tensors or torch. Four families of files exist, told apart by `model_type`:

    ernie4_5_moe_vl   flat: -PT (remote code) and -Paddle releases of the VL models; per-modality values are two-item lists
    ernie4_5_vl_moe   nested: transformers' native class, with text_config and vision_config
    ernie4_5_moe      text models with experts, ernie4_5: dense text models; flat in every release

A key that would change the arithmetic and has another value than ours is an error, and so is one that looks misspelt or
misplaced (`model_json_check`). Other keys that are not read (training options, settings of other programs) have no effect
here, as in the programs that wrote them; `unread_keys` lists them.
"""

from collections.abc import Mapping
from typing import Any

from ernie45.config.errors import CheckpointError
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig
from ernie45.config.model_json_check import check_keys
from ernie45.config.model_json_check import unread_keys as _unread_keys
from ernie45.config.model_json_keys import (
    ARCHITECTURES,
    DENSE,
    FLAT_VL,
    LAYOUT_NAMES,
    MODEL_TYPES,
    NATIVE_VL,
    NORM_MIN,
    VISION_NORM_EPS,
    VISION_ROPE_THETA,
    LayoutName,
)
from ernie45.config.model_json_writer import config_to_json

__all__ = ["LAYOUT_NAMES", "LayoutName", "config_from_json", "config_to_json", "unread_keys"]

_ROPE_TYPES = (None, "default", "mrope")


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """Read the content of a `config.json` of any layout.

    CheckpointError for another architecture, a missing key, and a value that this model does not compute with; ConfigError
    for numbers that do not fit together.
    """
    model_type = _model_type(data)
    if data.get("quantization_config"):
        raise CheckpointError(
            "config.json has quantization_config: quantised checkpoints cannot be read; use the bf16 release of the model"
        )
    check_keys(data, model_type)
    if model_type == NATIVE_VL:
        text, vision = data.get("text_config") or {}, data.get("vision_config") or {}
        tie = data.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
        tokens = {**text, **{key: value for key, value in data.items() if value is not None}}
        text = {**text, "tie_word_embeddings": tie}
        return _read(text, vision=_read_vision(vision, data), moe=_native_layers(text), tokens=tokens)
    vision = _read_vision(data.get("vision_config") or {}, data) if model_type == FLAT_VL else None
    return _read(data, vision=vision, moe=None if model_type == DENSE else _flat_layers(data), tokens=data)


def unread_keys(data: Mapping[str, Any]) -> list[str]:
    """Keys of a `config.json` that have no effect here, sorted. CheckpointError for another architecture."""
    return _unread_keys(data, _model_type(data))


def _model_type(data: Mapping[str, Any]) -> str:
    found = data.get("model_type")
    if found is None:
        names = data.get("architectures") or ["nothing"]
        known = {name.replace("_", "").lower(): kind for kind, name in ARCHITECTURES.items()}
        found = known.get(str(names[0]).replace("_", "").lower(), names[0])
        if found == NATIVE_VL and "text_config" not in data:
            found = FLAT_VL
    if found not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json describes model_type {found!r}, which is not of the ERNIE 4.5 family "
            f"({', '.join(MODEL_TYPES)}); point to an ERNIE 4.5 model folder"
        )
    return found


def _read(
    data: Mapping[str, Any], *, vision: VisionConfig | None, moe: tuple[int, int] | None, tokens: Mapping[str, Any]
) -> ModelConfig:
    """moe: (first layer with experts, interval) or None for a dense model."""
    hidden, num_heads = _need(data, "hidden_size"), _need(data, "num_attention_heads")
    head_dim = _get(data, "head_dim", hidden // num_heads)
    pools = () if moe is None else _read_pools(data, multimodal=vision is not None)
    shared = (_get(data, "moe_num_shared_experts", 0) * pools[0].ffn_size) if pools else 0
    return ModelConfig(
        hidden_size=hidden,
        num_layers=_need(data, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_get(data, "num_key_value_heads", num_heads),
        intermediate_size=_need(data, "intermediate_size"),
        vocab_size=_get(data, "vocab_size", 103424),
        head_dim=head_dim,
        expert_pools=pools,
        shared_ffn_size=shared,
        first_moe_layer=moe[0] if moe else 1,
        moe_layer_interval=moe[1] if moe else 1,
        norm_eps=_get(data, "rms_norm_eps", 1e-5),
        norm_min=_get(data, "moe_norm_min", NORM_MIN),
        rope_theta=_rope_theta(data),
        mrope_section=_mrope_section(data, head_dim),
        max_position_embeddings=_get(data, "max_position_embeddings", 131072),
        tie_word_embeddings=_get(data, "tie_word_embeddings", True),
        num_mtp_layers=_get(data, "num_nextn_predict_layers", 0),
        vision=vision,
        tokens=_read_tokens(tokens),
    )


def _read_pools(data: Mapping[str, Any], *, multimodal: bool) -> tuple[ExpertPoolConfig, ...]:
    modalities = ("text", "vision") if multimodal else ("text",)
    counts = _per_pool(data, "moe_num_experts", len(modalities))
    widths = _per_pool(data, "moe_intermediate_size", len(modalities))
    num_active = _need(data, "moe_k")
    return tuple(
        ExpertPoolConfig(modality=modality, num_experts=count, ffn_size=width, num_active=num_active)
        for modality, count, width in zip(modalities, counts, widths, strict=True)
    )


def _per_pool(data: Mapping[str, Any], key: str, num_pools: int) -> list[int]:
    value = data.get(key)
    values = [_count(key, item) for item in value] if isinstance(value, list) else [_need(data, key)] * num_pools
    if len(values) < num_pools:
        raise CheckpointError(f"{key} ({value!r}) in config.json must have {num_pools} values, one for each pool of experts")
    return values[:num_pools]


def _flat_layers(data: Mapping[str, Any]) -> tuple[int, int]:
    """(first MoE layer, interval); the layers with experts must reach to the end of the decoder."""
    bounds = []
    for key, default in (("moe_layer_start_index", 1), ("moe_layer_end_index", -1)):
        values = data.get(key) if isinstance(data.get(key), list) else [_get(data, key, default)]
        bounds.append([_get({key: value}, key, default) for value in values or [default]])
    first, last = min(bounds[0]), max(bounds[1])
    num_layers = _need(data, "num_hidden_layers")
    if last != -1 and last < num_layers - 1:
        raise CheckpointError(
            f"moe_layer_end_index ({last}) in config.json must be at least num_hidden_layers - 1 ({num_layers - 1}): "
            "dense layers after the layers with experts are not supported; use a released ERNIE 4.5 model"
        )
    return first, _get(data, "moe_layer_interval", 1)


def _native_layers(text: Mapping[str, Any]) -> tuple[int, int] | None:
    """(first MoE layer, interval) that gives `mlp_layer_types`; None if every layer is dense."""
    num_layers = _need(text, "num_hidden_layers")
    kinds = _get(text, "mlp_layer_types", ["dense"] + ["sparse"] * (num_layers - 1))
    sparse = [layer for layer, kind in enumerate(kinds) if kind == "sparse"]
    if not sparse:
        return None
    for interval in range(1, num_layers + 1):
        if sparse == [layer for layer in range(sparse[0], num_layers) if (layer + 1) % interval == 0]:
            return sparse[0], interval
    raise CheckpointError(
        f"mlp_layer_types in config.json has its sparse layers at {sparse}: they must be every n-th layer from one layer on; "
        "use a released ERNIE 4.5 model"
    )


def _rope_theta(data: Mapping[str, Any]) -> float:
    rope = {**(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(f"rope type ({kind!r}) in config.json must be 'default'; stretched positions are not supported")
    return float(_get(rope, "rope_theta", _get(data, "rope_theta", 500000.0)))


def _mrope_section(data: Mapping[str, Any], head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs by axis (height, width, time). Text models do not say; with equal positions any split is the same."""
    rope = {**(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    num_pairs = head_dim // 2
    if section := _get(rope, "mrope_section", []):
        if len(section) != 3:
            raise CheckpointError(f"mrope_section ({section!r}) in config.json must have 3 numbers: height, width, time")
        if _get(data, "freq_allocation", section[2]) != section[2]:
            raise CheckpointError(
                f"freq_allocation ({data['freq_allocation']}) in config.json must be the last number of mrope_section "
                f"({section[2]}); correct one"
            )
        return section[0], section[1], section[2]
    time = _get(data, "freq_allocation", num_pairs - 2 * (num_pairs * 22 // 64))
    return (num_pairs - time) // 2, (num_pairs - time) // 2, time


def _read_vision(vision: Mapping[str, Any], top: Mapping[str, Any]) -> VisionConfig:
    """`top` has the merge sizes in flat files."""
    hidden = _get(vision, "hidden_size", _get(vision, "embed_dim", 1280))
    if _get(vision, "embed_dim", hidden) != hidden:
        raise CheckpointError(
            f"vision embed_dim ({vision['embed_dim']}) in config.json must equal vision hidden_size ({hidden}); correct one"
        )
    rope = vision.get("rope_parameters") or {}
    patch_size = vision.get("patch_size")
    patch_size = patch_size[0] if isinstance(patch_size, list) and patch_size else _get(vision, "patch_size", 14)
    spatial = _get(vision, "spatial_merge_size", _get(top, "spatial_conv_size", 2))
    temporal = _get(vision, "temporal_merge_size", _get(top, "temporal_conv_size", 2))
    for key, value in (("pixel_hidden_size", hidden), ("spatial_conv_size", spatial), ("temporal_conv_size", temporal)):
        if _get(top, key, value) != value:
            raise CheckpointError(f"{key} ({top[key]!r}) in config.json must be {value}, as vision_config has it; correct one")
    return VisionConfig(
        depth=_get(vision, "depth", 32),
        hidden_size=hidden,
        num_heads=_get(vision, "num_heads", 16),
        intermediate_size=_get(vision, "intermediate_size", int(hidden * _get(vision, "mlp_ratio", 4.0))),
        in_channels=_get(vision, "in_channels", _get(vision, "in_chans", 3)),
        patch_size=patch_size,
        spatial_merge_size=spatial,
        temporal_merge_size=temporal,
        norm_eps=_get(vision, "rms_norm_eps", VISION_NORM_EPS),
        rope_theta=float(_get(rope, "rope_theta", VISION_ROPE_THETA)),
    )


_TOKEN_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "pad": ("pad_token_id",),
    "end_of_turn": ("sep_token_id",),
    "image_patch": ("im_patch_id", "image_token_id"),
    "image_start": ("image_start_token_id",),
    "image_end": ("image_end_token_id",),
    "video_start": ("video_start_token_id",),
    "video_end": ("video_end_token_id",),
}


def _read_tokens(data: Mapping[str, Any]) -> SpecialTokens:
    """Ids that the file has; the releases' ids for the others. Of several end tokens the first is taken."""
    found = {}
    for field, keys in _TOKEN_KEYS.items():
        value = next((data[key] for key in keys if data.get(key) is not None), None)
        if value is not None:
            found[field] = value[0] if isinstance(value, list | tuple) else value
    return SpecialTokens(**found)


def _need(data: Mapping[str, Any], key: str) -> int:
    """A whole number of at least 1 that the file must have."""
    if data.get(key) is None:
        raise CheckpointError(f"config.json lacks {key}: it is needed to build the model; take the file of the release")
    return _count(key, data[key])


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"{key} ({value!r}) in config.json must be a whole number of at least 1; take the file of the release"
        )
    return value


def _get(data: Mapping[str, Any], key: str, default: Any) -> Any:
    """The file's value, or `default` where it has none or null. CheckpointError if it has another type than `default`."""
    value = data.get(key)
    if value is None:
        return default
    wanted = (int, float) if type(default) is float else list if isinstance(default, list) else type(default)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise CheckpointError(f"{key} ({value!r}) in config.json must be like {default!r}; take the file of the release")
    return value
