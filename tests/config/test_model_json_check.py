"""Keys of config.json: those of released files pass, those that somebody meant and mistyped or misplaced are refused."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.model_json import config_from_json, config_to_json, unread_keys
from ernie45.config.presets import preset

Json = dict[str, Any]

# baidu/ERNIE-4.5-VL-28B-A3B-Base-PT, key by key; the -Paddle release has these without the second block, and `dtype`.
HUB_PT: Json = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_moe_vl",
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "moe_capacity": [128, 128, 128],
    "moe_gate": "topk",
    "moe_intermediate_size": [1536, 512],
    "moe_k": 6,
    "moe_layer_end_index": [29, 28],
    "moe_layer_interval": 1,
    "moe_layer_start_index": [1, 1],
    "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
    "moe_num_experts": [64, 64],
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pixel_hidden_size": 1280,
    "rms_norm_eps": 1e-05,
    "rope_3d": True,
    "rope_theta": 500000,
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "vocab_size": 103424,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_rmsnorm": True,
    "use_bias": False,
    "vision_config": {
        "attn_implementation": "eager",
        "attn_sep": True,
        "depth": 32,
        "embed_dim": 1280,
        "hidden_act": "quick_gelu",
        "hidden_size": 1280,
        "in_channels": 3,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "vit_first_fwd_bsz": 128,
    },
} | {
    "auto_map": {"AutoConfig": "configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig"},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "im_patch_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "default", "mrope_section": [22, 22, 20]},
}
# Further keys that Baidu's own classes and the remote code write for one model or another.
FOREIGN = """
add_tail_layers apply_rope_fusion attention_dropout_prob attention_probs_dropout_prob cachekv_quant disable_ffn_model_parallel
dpo_config enable_delay_scale_loss enable_mtp_magic_send fuse_attn_ffn fuse_gate_detach_matmul fuse_linear fuse_ln fuse_rms_norm
fuse_rope fuse_softmax_mask fuse_swiglu global_aux_loss hidden_dropout_prob ignored_index initializer_range loss_subbatch_seqlen
max_sequence_length max_text_id micro_batch_size modality_detach moe_all_to_all_dropout moe_aux_loss_lambda
moe_dense_experts_token_type_id moe_dropout_prob moe_fuse_experts moe_group moe_group_origin moe_group_orthogonal_loss
moe_layer_feed_fake_token moe_orthogonal_loss_lambda moe_rank moe_reverse_token_drop moe_use_size_all2all moe_world_size
moe_z_loss_lambda multi_token_pred_lambda num_acc_steps offload_pp_data_chunk_size output_attentions paddleformers_version
paddlenlp_version pp_seg_method recompute recompute_granularity recompute_method recompute_modules recompute_mtp_granularity
recompute_num_layers recompute_use_reentrant refined_recompute resampler_fuse_rms_norm sinkhorn_2gate sinkhorn_temp
skip_recompute_ops tensor_parallel_degree tensor_parallel_output sequence_parallel token_balance_loss token_balance_seqlen
use_ep_comm_overlap use_fast_ln use_filtered_label_loss use_flash_attention use_flash_attn use_flash_attn_with_mask
use_fused_head_and_loss_fn use_pure_fp16 use_recompute_lm_head use_recompute_loss_fn use_recompute_moe use_recompute_mtp
use_recompute_resampler use_sparse_flash_attn use_sparse_head_and_loss_fn use_var_len_flash_attn using_precision_check
weight_share_add_bias vit_num_recompute_layers pp_data_balance transformers_version torch_dtype dtype _name_or_path
_attn_implementation return_dict output_hidden_states chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type
router_aux_loss_coef output_router_logits cls_token_id unk_token_id mask_token_id decoder_start_token_id is_decoder
add_cross_attention cross_attention_hidden_size tie_encoder_decoder pruned_heads finetuning_task task_specific_params
tokenizer_class prefix num_labels max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences num_beams num_beam_groups
diversity_penalty forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens torchscript tf_legacy_loss use_bfloat16 early_stopping output_scores unsloth_fixed
unsloth_version
""".split()

FAMILIES: dict[str, Json] = {
    "flat VL": config_to_json(preset("28b-a3b"), "pt"),
    "nested VL": config_to_json(preset("28b-a3b"), "native"),
    "text": config_to_json(preset("21b-a3b"), "pt"),
    "dense": config_to_json(preset("0.3b"), "pt"),
}


def refusal(data: Json) -> str:
    with pytest.raises(CheckpointError) as caught:
        config_from_json(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_released_files_are_read() -> None:
    assert config_from_json(HUB_PT) == preset("28b-a3b")
    paddle = {key: HUB_PT[key] for key in list(HUB_PT)[: list(HUB_PT).index("auto_map")]} | {"dtype": "bfloat16"}
    assert config_from_json(paddle) == preset("28b-a3b")
    assert unread_keys(paddle) == [
        "dtype",
        "moe_capacity",
        "moe_multimodal_dispatch_use_allgather",
        "use_cache",
        "vision_config.attn_implementation",
        "vision_config.attn_sep",
        "vision_config.spatial_patch_size",
        "vision_config.vit_first_fwd_bsz",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_other_programs_pass_and_are_listed(family: str) -> None:
    data = FAMILIES[family]
    for value in (0.5, "x", True, {"a": 1}):
        more = data | dict.fromkeys(FOREIGN, value)
        assert config_from_json(more) == config_from_json(data)
        assert set(unread_keys(more)) >= set(FOREIGN)
    for inner in {"text_config", "vision_config"} & set(data):
        more = data | {inner: data[inner] | dict.fromkeys(FOREIGN, 1)}
        assert config_from_json(more) == config_from_json(data)
        assert set(unread_keys(more)) >= {f"{inner}.{key}" for key in FOREIGN}


def test_what_transformers_writes_passes() -> None:
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_VLMoeConfig, Ernie4_5Config

    for kind in (Ernie4_5_VLMoeConfig, Ernie4_5_MoeConfig, Ernie4_5Config):
        unread = unread_keys(kind().to_dict())
        assert "hidden_size" not in unread
        assert "transformers_version" in unread


def _leaves(data: Json, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = [leaf for key, value in data.items() if isinstance(value, dict) for leaf in _leaves(value, (*path, key))]
    return inner + [(*path, key) for key, value in data.items() if not isinstance(value, dict)]


def _replaced(data: Json, path: tuple[str, ...], key: str, value: Any) -> Json:
    """A copy where the last key of `path` is called `key` and holds `value`."""
    first, *rest = path
    if rest:
        return data | {first: _replaced(data[first], tuple(rest), key, value)}
    return {name: item for name, item in data.items() if name != first} | {key: value}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_counts_as_read_has_an_effect(family: str) -> None:
    """Every key that is not listed as unread changes the configuration, or is refused, when its value changes."""
    data = FAMILIES[family]
    config, unread = config_from_json(data), unread_keys(data)
    # Each has a twin beside it that comes first, or a reader elsewhere.
    idle = {"model_type", "architectures", "mlp_ratio", "type", "video_token_id", "text_config.tie_word_embeddings"}
    for path in _leaves(data):
        value = data
        for key in path:
            value = value[key]
        other = {bool: not value, int: 7, float: 7.5, str: "x", list: [7, 7, 7]}[type(value)]
        if ".".join(path) in unread or idle & {path[-1], ".".join(path)}:
            continue
        with contextlib.suppress(CheckpointError, ConfigError):
            assert config_from_json(_replaced(data, path, path[-1], other)) != config, path


@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_a_slip_of_the_pen_is_refused(family: str, data: st.DataObject) -> None:
    """One letter lost, doubled, exchanged or swapped with its neighbour in a key that is read."""
    content = FAMILIES[family]
    unread = unread_keys(content)
    path = data.draw(
        st.sampled_from([leaf for leaf in _leaves(content) if len(leaf[-1]) > 6 and ".".join(leaf) not in unread]), label="path"
    )
    key = path[-1]
    at = data.draw(st.integers(0, len(key) - 2), label="at")
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    slip = data.draw(
        st.sampled_from([key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "z" + key[at + 1 :], swapped]),
        label="slip",
    )
    value = content
    for step in path:
        value = value[step]
    if slip == key or slip == "im_patch_id" or not value:
        return
    try:
        message = refusal(_replaced(content, path, slip, value))
    except ConfigError:  # without its key the rest does not fit together
        return
    assert slip in message or key in message, message


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("flat VL", {"num_key_values_heads": 4}, ["num_key_values_heads (4)", "probably num_key_value_heads", "rename"]),
        ("flat VL", {"moe_intermediate_sizes": [1, 2]}, ["moe_intermediate_sizes ([1, 2])", "moe_intermediate_size"]),
        ("text", {"ropeTheta": 1e6}, ["ropeTheta", "probably rope_theta"]),
        ("text", {"use_biass": True}, ["probably use_bias"]),
        ("text", {"rope_scaling": {"rope_tehta": 5.0}}, ["rope_scaling.rope_tehta (5.0)", "rope_scaling.rope_theta"]),
        ("text", {"num_experts": 32}, ["num_experts (32)", "is called moe_num_experts"]),
        ("dense", {"num_layers": 4}, ["num_layers (4)", "num_hidden_layers"]),
        ("dense", {"moe_num_experts": 8}, ["moe_num_experts (8)", "other kinds", "remove"]),
        ("text", {"mlp_layer_types": ["dense"]}, ["mlp_layer_types", "other kinds"]),
        ("text", {"vision_config": {"depth": 2}}, ["vision_config", "other kinds"]),
        ("flat VL", {"depth": 4}, ["depth (4)", "wrong place", "vision_config.depth"]),
        ("flat VL", {"patch_size": 16}, ["patch_size (16)", "vision_config.patch_size"]),
        ("nested VL", {"hidden_size": 64}, ["hidden_size (64)", "text_config.hidden_size"]),
        (
            "nested VL",
            {"vision_config": {"num_hidden_layers": 4}},
            ["vision_config.num_hidden_layers (4)", "vision_config.depth"],
        ),
        ("nested VL", {"vision_config": {"hidden_sizes": 4}}, ["vision_config.hidden_sizes (4)"]),
        ("flat VL", {"vision_config": 3}, ["vision_config (3)", "object"]),
        ("flat VL", {"use_temporal_conv": False}, ["use_temporal_conv (False)", "must be True"]),
        ("flat VL", {"moe_gate": "sinkhorn"}, ["moe_gate ('sinkhorn')", "'topk'"]),
        ("flat VL", {"moe_use_token_type_bias": True}, ["moe_use_token_type_bias (True)"]),
        ("text", {"routed_scaling_factor": 2.5}, ["routed_scaling_factor (2.5)"]),
        ("dense", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["rope_parameters.partial_rotary_factor (0.5)"]),
        ("flat VL", {"pixel_hidden_size": 640}, ["pixel_hidden_size (640)", "1280"]),
        ("flat VL", {"spatial_conv_size": 4}, ["spatial_conv_size (4)", "must be 2"]),
        ("flat VL", {"freq_allocation": 22}, ["freq_allocation (22)", "mrope_section (20)"]),
    ],
)
def test_refused(family: str, changes: Json, words: list[str]) -> None:
    message = refusal(FAMILIES[family] | changes)
    assert all(word in message for word in words), message


def test_what_is_said_twice_or_switched_off_passes() -> None:
    for family, changes in [
        ("flat VL", {"depth": 32, "num_experts": None, "num_layers": 28}),
        ("nested VL", {"hidden_size": 2560, "vocab_size": 103424}),
        ("dense", {"moe_num_experts": 0, "moe_k": None, "vision_config": {}}),
        ("text", {"moe_use_hard_gate": False, "rope_3d": False, "moe_gate": "top2_fused"}),
    ]:
        assert config_from_json(FAMILIES[family] | changes) == config_from_json(FAMILIES[family])
