"""The tables: every parameter exactly once, and the names that other programs expect, written out."""

import math

import pytest
import torch

from ernie45.checkpoint.inventory import inventory
from ernie45.checkpoint.layouts import LAYOUTS, detect_layout, find_layout
from ernie45.checkpoint.layouts.table import expand
from ernie45.config.errors import CheckpointError
from ernie45.config.model import ExpertPoolConfig, ModelConfig, VisionConfig
from ernie45.config.parameters import count_parameters
from ernie45.config.presets import preset
from ernie45.model.multimodal import ErnieModel

FAMILY = ("0.3b", "21b-a3b", "28b-a3b", "300b-a47b", "424b-a47b")

VL = ModelConfig(
    hidden_size=20,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    mrope_section=(1, 1, 2),
    intermediate_size=48,
    vocab_size=99,
    shared_ffn_size=32,
    expert_pools=(
        ExpertPoolConfig(modality="text", num_experts=2, ffn_size=16, num_active=1),
        ExpertPoolConfig(modality="vision", num_experts=2, ffn_size=6, num_active=1),
    ),
    vision=VisionConfig(depth=1, hidden_size=16, num_heads=2, intermediate_size=64, patch_size=2),
)
VL_PT = {
    "model.embed_tokens.weight": (99, 20),
    "model.norm.weight": (20,),
    **{f"model.layers.{layer}.input_layernorm.weight": (20,) for layer in (0, 1)},
    **{f"model.layers.{layer}.post_attention_layernorm.weight": (20,) for layer in (0, 1)},
    **{f"model.layers.{layer}.self_attn.q_proj.weight": (24, 20) for layer in (0, 1)},
    **{f"model.layers.{layer}.self_attn.{name}_proj.weight": (8, 20) for layer in (0, 1) for name in "kv"},
    **{f"model.layers.{layer}.self_attn.o_proj.weight": (20, 24) for layer in (0, 1)},
    "model.layers.0.mlp.gate_proj.weight": (48, 20),
    "model.layers.0.mlp.up_proj.weight": (48, 20),
    "model.layers.0.mlp.down_proj.weight": (20, 48),
    "model.layers.1.mlp.gate.weight": (20, 2),
    "model.layers.1.mlp.gate.weight_1": (20, 2),
    "model.layers.1.mlp.moe_statics.e_score_correction_bias": (2, 2),
    "model.layers.1.mlp.shared_experts.gate_proj.weight": (32, 20),
    "model.layers.1.mlp.shared_experts.up_proj.weight": (32, 20),
    "model.layers.1.mlp.shared_experts.down_proj.weight": (20, 32),
    **{f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight": (16, 20) for expert in (0, 1) for name in ("gate", "up")},
    **{f"model.layers.1.mlp.experts.{expert}.down_proj.weight": (20, 16) for expert in (0, 1)},
    **{f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight": (6, 20) for expert in (2, 3) for name in ("gate", "up")},
    **{f"model.layers.1.mlp.experts.{expert}.down_proj.weight": (20, 6) for expert in (2, 3)},
    "vision_model.patch_embed.proj.weight": (16, 12),
    **{f"vision_model.blocks.0.{name}.{kind}": (16,) for name in ("norm1", "norm2") for kind in ("weight", "bias")},
    "vision_model.blocks.0.attn.qkv.weight": (48, 16),
    "vision_model.blocks.0.attn.qkv.bias": (48,),
    "vision_model.blocks.0.attn.proj.weight": (16, 16),
    "vision_model.blocks.0.attn.proj.bias": (16,),
    "vision_model.blocks.0.mlp.fc1.weight": (64, 16),
    "vision_model.blocks.0.mlp.fc1.bias": (64,),
    "vision_model.blocks.0.mlp.fc2.weight": (16, 64),
    "vision_model.blocks.0.mlp.fc2.bias": (16,),
    "vision_model.ln.weight": (16,),
    "vision_model.ln.bias": (16,),
    "model.resampler_model.spatial_linear.0.weight": (64, 64),
    "model.resampler_model.temporal_linear.0.weight": (64, 128),
    **{f"model.resampler_model.{stage}_linear.0.bias": (64,) for stage in ("spatial", "temporal")},
    **{f"model.resampler_model.{stage}_linear.2.weight": (64, 64) for stage in ("spatial", "temporal")},
    **{f"model.resampler_model.{stage}_linear.2.bias": (64,) for stage in ("spatial", "temporal")},
    **{
        f"model.resampler_model.{stage}_linear.3.{kind}": (64,)
        for stage in ("spatial", "temporal")
        for kind in ("weight", "bias")
    },
    "model.resampler_model.mlp.weight": (20, 64),
    "model.resampler_model.mlp.bias": (20,),
    "model.resampler_model.after_norm.weight": (20,),
}
TEXT = ModelConfig(
    hidden_size=20,
    num_layers=1,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    mrope_section=(1, 1, 2),
    intermediate_size=48,
    vocab_size=99,
    first_moe_layer=0,
    expert_pools=(ExpertPoolConfig(modality="text", num_experts=2, ffn_size=16, num_active=1),),
    num_mtp_layers=1,
    tie_word_embeddings=False,
)
TEXT_PADDLE = {
    "ernie.embed_tokens.weight": (99, 20),
    "ernie.norm.weight": (20,),
    "lm_head.weight": (20, 99),
    "ernie.layers.0.input_layernorm.weight": (20,),
    "ernie.layers.0.post_attention_layernorm.weight": (20,),
    "ernie.layers.0.self_attn.qkv_proj.weight": (20, 40),
    "ernie.layers.0.self_attn.o_proj.weight": (24, 20),
    "ernie.layers.0.mlp.gate.weight": (20, 2),
    "ernie.layers.0.mlp.moe_statics.e_score_correction_bias": (1, 2),
    **{f"ernie.layers.0.mlp.experts.{expert}.up_gate_proj.weight": (20, 32) for expert in (0, 1)},
    **{f"ernie.layers.0.mlp.experts.{expert}.down_proj.weight": (16, 20) for expert in (0, 1)},
    "ernie.mtp_emb_norm.0.weight": (20,),
    "ernie.mtp_hidden_norm.0.weight": (20,),
    "ernie.mtp_linear_proj.0.weight": (40, 20),
    "ernie.mtp_block.0.input_layernorm.weight": (20,),
    "ernie.mtp_block.0.post_attention_layernorm.weight": (20,),
    "ernie.mtp_block.0.self_attn.qkv_proj.weight": (20, 40),
    "ernie.mtp_block.0.self_attn.o_proj.weight": (24, 20),
    "ernie.mtp_block.0.mlp.up_gate_proj.weight": (20, 96),
    "ernie.mtp_block.0.mlp.down_proj.weight": (48, 20),
}


def shapes(layout: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {slot.tensor: slot.shape for slot in expand(find_layout(layout), config, inventory(config))}


def test_pt_names_of_a_vl_model() -> None:
    assert shapes("pt", VL) == VL_PT


def test_native_differs_in_the_prefix_of_the_tower_only() -> None:
    prefixed = {f"model.{name}" if name.startswith("vision_model.") else name: shape for name, shape in VL_PT.items()}
    assert shapes("native", VL) == prefixed


def test_paddle_names_of_a_text_model() -> None:
    assert shapes("paddle", TEXT) == TEXT_PADDLE


def test_pt_text_routers_are_not_transposed() -> None:
    found = shapes("pt", TEXT)
    assert found["model.layers.0.mlp.gate.weight"] == (2, 20)
    assert found["model.layers.0.mlp.moe_statics.e_score_correction_bias"] == (1, 2)
    assert found["model.mtp_linear_proj.0.weight"] == (20, 40)
    assert found["model.mtp_block.0.mlp.gate_proj.weight"] == (48, 20)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_of_every_parameter_exactly_once(layout: str, name: str) -> None:
    config = preset(name)
    parameters = inventory(config)
    slots = expand(find_layout(layout), config, parameters)
    spans: dict[tuple[str, int | None], list[tuple[int, int]]] = {}
    for slot in slots:
        spans.setdefault((slot.parameter, slot.expert), []).append((slot.start, slot.stop))
    expected = {
        (name, expert): parameter.matrix[0]
        for name, parameter in parameters.items()
        for expert in (range(parameter.shape[0]) if parameter.stacked else [None])
    }
    assert spans.keys() == expected.keys()
    for key, own in spans.items():
        borders = [0, *(border for span in sorted(own) for border in span), expected[key]]
        assert borders[::2] == borders[1::2], (key, own)
    assert sum(math.prod(shape) for shape in {slot.tensor: slot.shape for slot in slots}.values()) == count_parameters(config)


@pytest.mark.parametrize("name", ["0.3b", "28b-a3b", "424b-a47b"])
def test_inventory_is_the_model(name: str) -> None:
    config = preset(name)
    model = ErnieModel(config, dtype=torch.bfloat16, device="meta")
    found = {key: (tuple(tensor.shape), tensor.dtype == torch.float32) for key, tensor in model.state_dict().items()}
    assert found == {key: (parameter.shape, parameter.fp32) for key, parameter in inventory(config).items()}


def test_layout_is_told_by_the_names() -> None:
    for layout in LAYOUTS:
        assert detect_layout(shapes(layout, VL), is_native=layout == "native").name == layout
    assert detect_layout(VL_PT, is_native=True).name == "pt", "names count, not the form of config.json"
    with pytest.raises(CheckpointError, match=r"'gguf'.*pt, native, paddle"):
        find_layout("gguf")
