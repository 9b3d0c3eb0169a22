"""Which parameters learn in a phase: groups by name and by pattern, alternation, detach, and the switch of gradients."""

import pytest
import torch
from torch import nn

from ernie45.config.errors import ConfigError
from ernie45.config.pretrain import PhaseConfig
from ernie45.config.train import RouterConfig, ScheduleConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.phase import GradientGate, PhaseGroups, group_of

SCHEDULE = ScheduleConfig(num_steps=6, warmup_steps=0)


def phase(**changes) -> PhaseConfig:
    return PhaseConfig(**{"name": "p", "schedule": SCHEDULE} | changes)


@pytest.fixture
def modules(model: ErnieModel) -> nn.ModuleDict:
    return nn.ModuleDict({"model": model})


def names_of(modules: nn.Module) -> list[str]:
    return [name for name, _ in modules.named_parameters()]


def test_every_parameter_has_one_of_three_groups(modules: nn.ModuleDict) -> None:
    """text holds what Baidu's `lm` group does, vision_mixed its `mm`, tower its `vit`."""
    by_group = {
        group: {name for name in names_of(modules) if group_of(name) == group} for group in ("text", "vision_mixed", "tower")
    }
    assert set().union(*by_group.values()) == set(names_of(modules))
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.pools.text.router.weight"} <= by_group["text"]
    assert {"model.layers.1.mlp.shared.down_proj.weight", "model.layers.0.mlp.down_proj.weight"} <= by_group["text"]
    assert {"model.layers.1.mlp.pools.vision.router.weight", "model.resampler_model.mlp.weight"} <= by_group["vision_mixed"]
    assert all("vision_model" in name for name in by_group["tower"])
    assert group_of("small.norm.weight") == "small"


def test_groups_rest_in_the_other_kind_of_batch(modules: nn.ModuleDict) -> None:
    """Two steps of text, one with pictures: vision moves in the third alone; text_rests keeps text to the first two."""
    alternating = phase(text_steps=2, picture_steps=1, lr_ratios=("tower=0.5",))
    groups = PhaseGroups(alternating, names_of(modules)).groups()
    active = {group.name: [group.active(step) for step in range(6)] for group in groups}
    assert active["text"] == [True] * 6
    assert active["vision_mixed"] == active["tower"] == [False, False, True] * 2
    apart = PhaseGroups(phase(text_steps=2, picture_steps=1, text_rests=True), names_of(modules)).groups()
    assert [apart[0].active(step) for step in range(3)] == [True, True, False]
    assert {group.name: group.lr_ratio for group in groups} == {"text": 1.0, "vision_mixed": 1.0, "tower": 0.5}
    mixed = PhaseGroups(phase(), names_of(modules)).groups()
    assert all(group.active(step) for group in mixed for step in range(6))


def test_a_pattern_is_a_group_that_rests_with_what_it_names(modules: nn.ModuleDict) -> None:
    groups = PhaseGroups(
        phase(trains=(r"pools\.vision\.router", "text"), text_steps=1, picture_steps=1), names_of(modules)
    ).groups()
    routers = [name for name in names_of(modules) if groups[0].trains(name)]
    assert routers == [f"model.layers.{layer}.mlp.pools.vision.router.weight" for layer in (1, 2)]
    assert [groups[0].active(step) for step in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trains": ("txt",)}, r"trains \('txt'\) fits no parameter"),
        ({"trains": ("(",)}, "neither a group .* nor a pattern"),
        ({"trains": ("tower",)}, "in batches of texts nothing learns"),
        ({"trains": ("text",), "picture_steps": 1, "text_rests": True}, "in batches with pictures nothing learns"),
    ],
)
def test_a_phase_in_which_nothing_could_learn_is_refused(modules: nn.ModuleDict, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhaseGroups(phase(**changes), names_of(modules))


def gradients(modules: nn.ModuleDict, batch: LanguageBatch, config: PhaseConfig) -> dict[str, bool]:
    """Name -> whether there is a gradient other than zero, after a forward as the phase makes it."""
    model = modules["model"]
    assert isinstance(model, ErnieModel)
    modules.zero_grad()
    GradientGate(PhaseGroups(config, names_of(modules))).set(modules, batch.packed.vision is not None)
    language_loss(language_forward(model, batch), batch, RouterConfig(aux_weight=1.0, z_weight=1.0)).loss.backward()
    return {name: parameter.grad is not None and bool(parameter.grad.any()) for name, parameter in modules.named_parameters()}


def test_detach_drops_text_gradients_with_pictures_and_changes_no_other(
    modules: nn.ModuleDict, picture_batch: LanguageBatch, text_batch: LanguageBatch
) -> None:
    whole = gradients(modules, picture_batch, phase())
    expected = {name: parameter.grad.clone() for name, parameter in modules.named_parameters() if parameter.grad is not None}
    found = gradients(modules, picture_batch, phase(detach_text=True))
    for name, parameter in modules.named_parameters():
        if group_of(name) == "text":
            assert not found[name], name
        else:
            assert parameter.grad is not None
            assert found[name] == whole[name], name
            assert torch.allclose(parameter.grad, expected[name], atol=1e-7), name
    back = gradients(modules, text_batch, phase(detach_text=True))
    assert all(back[name] for name in back if group_of(name) == "text"), "texts teach it again"


def test_frozen_parameters_cost_no_gradient(modules: nn.ModuleDict, picture_batch: LanguageBatch) -> None:
    align = phase(trains=("vision_mixed",), picture_steps=1)
    found = gradients(modules, picture_batch, align)
    last = "model.layers.2.mlp.pools.vision."
    for name, parameter in modules.named_parameters():
        trains = group_of(name) == "vision_mixed"
        assert parameter.requires_grad == trains, name
        assert found[name] == (trains and not (name.startswith(last) and "router" not in name)), name
