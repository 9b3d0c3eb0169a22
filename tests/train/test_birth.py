"""Vision experts born from text experts: equal to the slice, whatever the widths, and harmless to the stream."""

from dataclasses import replace

import pytest
import torch

from ernie45.config.errors import ConfigError
from ernie45.config.model import ModelConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.birth import birth_vision_experts
from tests import small_model
from tests.small_model import pools


def born(config: ModelConfig, scale: float | None = None) -> ErnieModel:
    model = ErnieModel(config)
    model.init_weights(torch.Generator().manual_seed(1))
    assert birth_vision_experts(model, scale) == config.num_moe_layers * config.expert_pools[1].num_experts
    return model


def test_a_third_is_the_first_third_and_down_is_divided_by_the_active_experts() -> None:
    model = born(small_model.small_config(expert_pools=pools(num_active=3, text=24, vision=8)))
    text, vision = model.layers[1].mlp.pools.values()
    for expert in range(4):
        gate, up = text.gate_up_weight[expert].split(24)
        assert torch.equal(vision.gate_up_weight[expert], torch.cat((gate[:8], up[:8])))
        assert torch.allclose(vision.down_weight[expert], text.down_weight[expert][:, :8] / 3)


@pytest.mark.parametrize(("text", "vision"), [(16, 16), (16, 24), (16, 48)])
def test_as_wide_or_wider_with_scale_1_is_the_same_function(text: int, vision: int) -> None:
    model = born(small_model.small_config(expert_pools=pools(text=text, vision=vision)), scale=1.0)
    pools_ = model.layers[1].mlp.pools
    pools_["vision"].router.load_state_dict(pools_["text"].router.state_dict())
    x_RD = torch.randn(9, 32)
    assert torch.allclose(pools_["text"](x_RD)[0], pools_["vision"](x_RD)[0], atol=1e-6)


def test_more_vision_than_text_experts_take_turns() -> None:
    two_sizes = (replace(pools(text=16)[0], num_experts=3), replace(pools(vision=16)[0], num_experts=8))
    model = born(small_model.small_config(expert_pools=two_sizes), scale=1.0)
    text, vision = model.layers[1].mlp.pools.values()
    for expert in range(8):
        assert torch.equal(vision.down_weight[expert], text.down_weight[expert % 3])


def test_born_experts_disturb_the_stream_less_than_fresh_ones(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    """The last hidden states of pictures move less from what they are with silent vision experts."""
    fresh_TD = model(picture_batch.packed).hidden_TD.detach()
    birth_vision_experts(model)
    born_TD = model(picture_batch.packed).hidden_TD.detach()
    with torch.no_grad():
        for block in model.layers[1:]:
            block.mlp.pools["vision"].down_weight.zero_()
    silent_TD = model(picture_batch.packed).hidden_TD.detach()
    assert 0 < (born_TD - silent_TD).norm() < (fresh_TD - silent_TD).norm()


def test_a_model_of_one_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="births .* text and vision experts"):
        birth_vision_experts(ErnieModel(small_model.small_config(expert_pools=pools(text=16), vision=None)))
