"""The parameter table against the published counts and against the model's own modules."""

import pytest
import torch

from ernie45.config.model import ModelConfig
from ernie45.config.parameters import (
    context_of_double,
    count_active,
    count_parameters,
    count_text_only,
    kv_bytes_per_token,
    parameter_parts,
    weight_bytes,
)
from ernie45.config.presets import PRESETS, preset
from ernie45.model.multimodal import ErnieModel

PARTS_28B = {
    "text experts": 20_384_317_440,
    "vision experts": 6_794_772_480,
    "shared experts": 637_009_920,
    "ViT": 630_433_280,
    "attention": 440_401_920,
    "embedding (tied head)": 264_765_440,
    "resampler": 144_225_280,
    "dense MLP layer 0": 94_371_840,
    "routers + correction bias": 8_850_816,
    "norms": 145_920,
}
GIB = 2**30


@pytest.fixture(scope="module")
def config_28b() -> ModelConfig:
    return preset("28b-a3b")


def test_parts_of_the_28b_model(config_28b: ModelConfig) -> None:
    assert {part.name: part.num_params for part in parameter_parts(config_28b)} == PARTS_28B
    assert count_parameters(config_28b) == 29_399_294_336


def test_largest_part_comes_first(config_28b: ModelConfig) -> None:
    sizes = [part.num_params for part in parameter_parts(config_28b)]
    assert sizes == sorted(sizes, reverse=True)


def test_active_parameters_of_the_28b_model(config_28b: ModelConfig) -> None:
    assert round(count_active(config_28b) / 1e9, 3) == 3.357
    assert round((count_active(config_28b) - PARTS_28B["embedding (tied head)"]) / 1e9, 3) == 3.092
    assert round(count_active(config_28b, "vision") / 1e9, 3) == 2.083
    encoder = PARTS_28B["ViT"] + PARTS_28B["resampler"]
    assert round((count_active(config_28b, "vision") + encoder) / 1e9, 3) == 2.857


def test_text_only_sub_model_is_the_21b_model_without_its_draft_layer(config_28b: ModelConfig) -> None:
    assert round(count_text_only(config_28b) / 1e9, 2) == 21.83
    drafting = next(part for part in parameter_parts(preset("21b-a3b")) if part.name == "multi-token prediction")
    assert count_parameters(preset("21b-a3b")) - drafting.num_params == count_text_only(config_28b)


def test_bf16_weights_keep_routers_in_fp32(config_28b: ModelConfig) -> None:
    assert weight_bytes(config_28b, "bf16") == 2 * 29_399_294_336 + 2 * PARTS_28B["routers + correction bias"]
    assert round(weight_bytes(config_28b, "bf16") / GIB, 1) == 54.8
    assert weight_bytes(config_28b, "fp32") == 4 * 29_399_294_336


def test_low_bit_weights_by_hand(config_28b: ModelConfig) -> None:
    kept = 2 * (PARTS_28B["ViT"] + PARTS_28B["resampler"] + PARTS_28B["embedding (tied head)"] + PARTS_28B["norms"])
    routers = 4 * PARTS_28B["routers + correction bias"]
    linear = PARTS_28B["shared experts"] + PARTS_28B["attention"] + PARTS_28B["dense MLP layer 0"]
    routed = PARTS_28B["text experts"] + PARTS_28B["vision experts"]
    linear_rows = 27 * (2 * 3072 + 2560) + 28 * (20 * 128 + 2 * 4 * 128 + 2560) + (2 * 12288 + 2560)
    routed_rows = 27 * 64 * (2 * 1536 + 2560 + 2 * 512 + 2560)
    rest = kept + routers + linear + 2 * linear_rows
    assert weight_bytes(config_28b, "8") == rest + routed + 2 * routed_rows
    assert weight_bytes(config_28b, "4") == rest + routed // 2 + 2 * routed_rows
    assert weight_bytes(config_28b, "2") == rest + routed * 33 // 128 + 10 * routed_rows


def test_key_value_bytes(config_28b: ModelConfig) -> None:
    assert kv_bytes_per_token(config_28b) == 28 * 2 * 4 * 128 * 2 == 57_344
    assert kv_bytes_per_token(config_28b, bytes_per_value=1) == 57_344 // 2


def test_dense_model_has_no_experts_and_everything_is_active() -> None:
    config = preset("0.3b")
    assert [part.name for part in parameter_parts(config)] == ["dense MLP", "embedding (tied head)", "attention", "norms"]
    assert count_active(config) == count_parameters(config) == 360_748_032


def test_untied_head_is_counted_apart() -> None:
    config = preset("300b-a47b")
    names = [part.name for part in parameter_parts(config)]
    assert "embedding" in names
    assert "head" in names
    assert "dense MLP layers 0-2" in names


@pytest.mark.parametrize("name", PRESETS)
def test_the_real_modules_have_as_many(name: str) -> None:
    config = preset(name)
    model = ErnieModel(config, dtype=torch.bfloat16, device="meta")
    assert sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()]) == count_parameters(config)


def test_context_of_double(config_28b: ModelConfig) -> None:
    """28B-A3B: 2.8 B weights of blocks a text token, 28 layers of 20 heads of 128."""
    assert 18_000 < context_of_double(config_28b) < 23_000
