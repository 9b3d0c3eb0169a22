"""The model's shape: what is refused and in which words, and what follows from the numbers."""

from dataclasses import FrozenInstanceError, replace

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.model import ExpertPoolConfig, ModelConfig, VisionConfig
from ernie45.config.presets import preset


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return preset("28b-a3b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_kv_heads": 3},
            r"num_heads \(20\) must be divisible by num_kv_heads \(3\); use num_kv_heads in \[1, 2, 4, 5, 10, 20\]",
        ),
        ({"hidden_size": 0}, r"hidden_size \(0\) must be a whole number of at least 1"),
        ({"num_layers": 2.5}, r"num_layers \(2\.5\) must be a whole number"),
        ({"mrope_section": (22, 20, 22)}, r"mrope_section \(22, 20, 22\) must be \(h, h, t\) .* head_dim \(128\)"),
        ({"mrope_section": (22, 22, 22)}, r"must be \(h, h, t\)"),
    ],
)
def test_wrong_numbers_are_named(config: ModelConfig, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)


def test_pools_come_in_one_order(config: ModelConfig) -> None:
    text, vision = config.expert_pools
    for pools in ((vision, text), (text, text), (vision,)):
        with pytest.raises(ConfigError, match="must be none, text, or text then vision"):
            replace(config, expert_pools=pools)


def test_more_active_experts_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"num_active \(9\) must be at most num_experts \(8\) in the text pool"):
        ExpertPoolConfig(modality="text", num_experts=8, ffn_size=4, num_active=9)


def test_the_tower_must_split_into_heads_and_axes() -> None:
    with pytest.raises(ConfigError, match=r"vision hidden_size \(1280\) must be a multiple of 4 \* num_heads \(15\)"):
        VisionConfig(num_heads=15)
    with pytest.raises(ConfigError, match=r"temporal_merge_size \(3\) must be 2"):
        VisionConfig(temporal_merge_size=3)


def test_which_layers_are_mixtures(config: ModelConfig) -> None:
    assert [layer for layer in range(28) if not config.is_moe_layer(layer)] == [0]
    assert config.num_moe_layers == 27
    assert [layer for layer in range(54) if not preset("300b-a47b").is_moe_layer(layer)] == [0, 1, 2]
    assert preset("0.3b").num_moe_layers == 0


def test_visual_tokens_are_the_placeholder_and_its_markers(config: ModelConfig) -> None:
    assert config.tokens.vision_ids == (100295, 101304, 101305, 101306, 101307)


def test_a_config_cannot_be_changed(config: ModelConfig) -> None:
    with pytest.raises(FrozenInstanceError):
        config.hidden_size = 1  # type: ignore[misc]
