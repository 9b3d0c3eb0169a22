"""config.json of every family: read as released, written and read back, refused where it is not ours."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig
from ernie45.config.model_json import LAYOUT_NAMES, config_from_json, config_to_json
from ernie45.config.presets import preset

FAMILY = ("0.3b", "21b-a3b", "28b-a3b", "300b-a47b", "424b-a47b")

# The -PT release of the 28B model, as far as it is known; null stands for the default there too.
RELEASED_VL = {
    "model_type": "ernie4_5_moe_vl",
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "auto_map": {"AutoConfig": "configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig"},
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": None,
    "vocab_size": 103424,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "use_bias": False,
    "tie_word_embeddings": True,
    "rope_theta": 500000,
    "rope_3d": True,
    "freq_allocation": 20,
    "moe_num_experts": [64, 64],
    "moe_intermediate_size": [1536, 512],
    "moe_k": 6,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [29, 28],
    "moe_layer_interval": 1,
    "moe_gate": "topk",
    "moe_use_aux_free": True,
    "moe_use_hard_gate": True,
    "im_patch_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
    "pixel_hidden_size": 1280,
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "vision_config": {
        "model_type": "DFNRope_vision_transformer",
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1280,
        "hidden_act": "quick_gelu",
        "in_channels": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
}


def test_released_vl_config_is_the_preset() -> None:
    assert config_from_json(RELEASED_VL) == preset("28b-a3b")


def test_defaults_of_transformers_classes_are_the_presets() -> None:
    """transformers' default arguments are the released models; written to a dict they read as ours."""
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_VLMoeConfig, Ernie4_5Config

    assert config_from_json(Ernie4_5_VLMoeConfig().to_dict()) == preset("28b-a3b")
    assert config_from_json(Ernie4_5_MoeConfig().to_dict()) == replace(preset("21b-a3b"), num_mtp_layers=0)
    assert config_from_json(Ernie4_5Config().to_dict()) == preset("0.3b")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("name", FAMILY)
def test_written_and_read_back(name: str, layout) -> None:
    config = preset(name)
    assert config_from_json(config_to_json(config, layout)) == config


@pytest.mark.parametrize("name", ["0.3b", "21b-a3b", "28b-a3b"])
def test_transformers_reads_what_we_write(name: str) -> None:
    """Native content goes through transformers' own strict class and means the same afterwards."""
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_VLMoeConfig, Ernie4_5Config

    kind = {"0.3b": Ernie4_5Config, "21b-a3b": Ernie4_5_MoeConfig, "28b-a3b": Ernie4_5_VLMoeConfig}[name]
    config = preset(name)
    assert config_from_json(kind.from_dict(config_to_json(config, "native")).to_dict()) == config
    if config.vision is None:
        assert kind.from_dict(config_to_json(config, "pt")).rope_parameters["rope_theta"] == config.rope_theta


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Small members of the family, text only or multimodal."""
    num = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    pairs, multimodal = num(1, 3), draw(st.booleans())
    time = num(1, 4)
    num_experts = num(2, 8)
    pool = lambda modality: ExpertPoolConfig(  # noqa: E731
        modality=modality, num_experts=num_experts, ffn_size=8 * num(1, 4), num_active=2
    )
    pools = (pool("text"), pool("vision")) if multimodal else draw(st.sampled_from([(), (pool("text"),)]))
    num_layers, interval = num(2, 6), num(1, 2)
    head_dim = 2 * (2 * pairs + time)
    section = (pairs, pairs, time)
    if not multimodal:  # text files do not say how the pairs are split; it has no effect there
        pairs = (head_dim // 2) * 22 // 64
        section = (pairs, pairs, head_dim // 2 - 2 * pairs)
    return ModelConfig(
        hidden_size=16 * num(1, 4),
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=draw(st.sampled_from([1, 2, 4])),
        intermediate_size=num(1, 99),
        vocab_size=num(20, 999),
        head_dim=head_dim,
        expert_pools=pools,
        shared_ffn_size=pools[0].ffn_size * num(0, 2) if pools else 0,
        # The first layer named is one that has experts, as far as a list of layers can tell.
        first_moe_layer=interval * num(1, num_layers // interval) - 1 if pools else 1,
        moe_layer_interval=interval if pools else 1,
        norm_min=1e-12,
        mrope_section=section,
        tie_word_embeddings=draw(st.booleans()),
        vision=VisionConfig(depth=2, hidden_size=32, num_heads=2, intermediate_size=num(1, 200)) if multimodal else None,
        tokens=replace(SpecialTokens(end_of_turn=num(3, 9)), **({"image_patch": num(10, 19)} if multimodal else {})),
    )


@given(configs(), st.sampled_from(LAYOUT_NAMES))
def test_any_small_config_is_read_back(config: ModelConfig, layout) -> None:
    back = config_from_json(config_to_json(config, layout))
    same_layers = [config.is_moe_layer(layer) for layer in range(config.num_layers)]
    assert [back.is_moe_layer(layer) for layer in range(back.num_layers)] == same_layers
    alike = {"first_moe_layer": config.first_moe_layer, "moe_layer_interval": config.moe_layer_interval}
    assert replace(back, **alike) == config


def test_native_video_token() -> None:
    """The releases' own where the vocabulary has it; a model without one shares the image placeholder."""
    config = preset("28b-a3b")
    assert config_to_json(config, "native")["video_token_id"] == 103367
    assert config_to_json(config, "native", video_token=7)["video_token_id"] == 7
    small = replace(config, vocab_size=500, tokens=SpecialTokens(image_patch=99))
    assert config_to_json(small, "native")["video_token_id"] == 99


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, ["model_type 'llama'", "ERNIE 4.5 family"]),
        ({"model_type": None, "architectures": ["LlamaForCausalLM"]}, ["'LlamaForCausalLM'"]),
        ({"model_type": None, "architectures": None}, ["'nothing'"]),
        ({"hidden_size": None}, ["lacks hidden_size"]),
        ({"hidden_size": "2560"}, ["hidden_size ('2560')", "whole number"]),
        ({"num_attention_heads": 0}, ["num_attention_heads (0)"]),
        ({"moe_num_experts": [64]}, ["moe_num_experts ([64])", "2 values"]),
        ({"moe_num_experts": [64, "x"]}, ["moe_num_experts ('x')"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps ('small')"]),
        ({"use_bias": True}, ["use_bias (True)", "must be False"]),
        ({"hidden_act": "gelu"}, ["hidden_act ('gelu')", "'silu'"]),
        ({"moe_gate_act": "sigmoid"}, ["moe_gate_act ('sigmoid')"]),
        ({"mm_vocab_size": 8}, ["mm_vocab_size (8)"]),
        ({"moe_layer_end_index": [20, 20]}, ["moe_layer_end_index (20)", "num_hidden_layers - 1 (27)"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, ["rope type ('yarn')"]),
        ({"rope_scaling": {"mrope_section": [1]}}, ["mrope_section ([1])"]),
        ({"quantization_config": {"quant_method": "wint4"}}, ["quantization_config"]),
        ({"vision_config": {"hidden_act": "gelu"}}, ["hidden_act ('gelu')"]),
        ({"vision_config": {"embed_dim": 8, "hidden_size": 9}}, ["embed_dim (8)", "hidden_size (9)"]),
    ],
)
def test_refused(changes: dict, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_from_json(RELEASED_VL | changes)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_numbers_that_do_not_fit_together_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"num_kv_heads \(3\)"):
        config_from_json(RELEASED_VL | {"num_key_value_heads": 3})


def test_irregular_sparse_layers_are_refused() -> None:
    data = config_to_json(preset("28b-a3b"), "native")
    data["text_config"]["mlp_layer_types"][5] = "dense"
    with pytest.raises(CheckpointError, match="mlp_layer_types"):
        config_from_json(data)


def test_models_that_no_file_can_describe_are_refused() -> None:
    config = preset("28b-a3b")
    text, vision = config.expert_pools
    for changes, layout, word in [
        ({"expert_pools": (text, replace(vision, num_experts=32))}, "pt", "num_experts"),
        ({"expert_pools": (text,)}, "native", "expert_pools"),
        ({"shared_ffn_size": 1000}, "pt", "shared_ffn_size"),
        ({"vision": VisionConfig(norm_eps=1e-5)}, "paddle", "norm_eps"),
        ({"vision": None}, "pt", "vision tower"),
    ]:
        with pytest.raises(CheckpointError, match=word):
            config_to_json(replace(config, **changes), layout)
    with pytest.raises(CheckpointError, match="layout"):
        config_to_json(config, "gguf")  # type: ignore[arg-type]


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, ernie45.config.model_json, ernie45.checkpoint as c; "
        "c.convert, c.read_config, c.open_folder; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
