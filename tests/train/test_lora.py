"""Adapters under training: what they change, what rests, and that both pools' experts learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ernie45.checkpoint.adapter_targets import adapter_targets
from ernie45.config.errors import ConfigError
from ernie45.config.lora import GROUPS, LoraConfig
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.loop import Run, Trainer
from ernie45.train.lora import LoraParameters, num_parameters, trained_modules, with_lora
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.stage import Stage
from ernie45.train.storage import load_checkpoint
from ernie45.train.workers import Workers

ALL = LoraConfig(rank=3, targets=("all",))
# Pictures carry no labels, so nothing sees what the last layer's vision experts make of them.
UNSEEN = "layers.2.mlp.pools.vision."
OFF = RouterConfig(bias_rate=0.0, orthogonal_weight=0.0, aux_weight=0.0, z_weight=0.0)


def loss_of(modules: nn.ModuleDict, batch: LanguageBatch) -> torch.Tensor:
    outputs = language_forward(modules["model"], with_lora(modules, batch))  # type: ignore[arg-type]
    return language_loss(outputs, batch, OFF).loss


def speaking(modules: nn.ModuleDict) -> nn.ModuleDict:
    """B away from zero, where A would get no gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in modules["lora"].named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0, 0.1, generator=generator)
    return modules


def test_it_begins_as_the_model_itself_and_then_says_something(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    plain = loss_of(nn.ModuleDict({"model": model}), picture_batch)
    modules = trained_modules(model, ALL, OFF, seed=0)
    assert loss_of(modules, picture_batch) == plain
    assert (loss_of(speaking(modules), picture_batch) - plain).abs() > 1e-3


def test_only_the_adapter_has_gradients_and_every_part_of_it(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    modules = speaking(trained_modules(model, ALL, OFF, seed=0))
    loss_of(modules, picture_batch).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []
    lora = modules["lora"]
    assert isinstance(lora, LoraParameters)
    silent = [name for name, parameter in lora.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert all(name.startswith(UNSEEN) for name in silent), "tower, resampler and vision experts must see pictures"
    assert {name.partition(".")[0] for name in lora.names} == {"layers", "vision_model", "resampler_model"}


def test_without_pictures_the_vision_side_rests_and_nothing_breaks(model: ErnieModel, text_batch: LanguageBatch) -> None:
    modules = speaking(trained_modules(model, ALL, OFF, seed=0))
    loss_of(modules, text_batch).backward()
    for name, parameter in modules["lora"].named_parameters():
        seen = ".pools.vision." not in name and not name.startswith(("vision_model", "resampler_model"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == seen, name


def test_the_whole_model_reaches_both_pools(model: ErnieModel, picture_batch: LanguageBatch, text_batch: LanguageBatch) -> None:
    for batch, has_pictures in ((picture_batch, True), (text_batch, False)):
        model.zero_grad()
        loss_of(nn.ModuleDict({"model": model}), batch).backward()
        for name, parameter in model.named_parameters():
            if ".pools.vision." in name and not name.startswith(UNSEEN):
                assert (parameter.grad is not None and bool(parameter.grad.any())) == has_pictures, name


def test_a_text_model_has_a_decoder_to_adapt(model: ErnieModel, text_batch: LanguageBatch) -> None:
    config = replace(model.config, vision=None, expert_pools=model.config.expert_pools[:1])
    alone = ErnieModel(config)
    alone.init_weights(torch.Generator().manual_seed(0))
    modules = speaking(trained_modules(alone, LoraConfig(rank=2), OFF, seed=0))
    loss_of(modules, text_batch).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in modules["lora"].parameters())
    with pytest.raises(ConfigError, match=r"lora.targets \('tower'\) matches no projection of this model"):
        trained_modules(alone, LoraConfig(rank=2, targets=("decoder", "tower")), OFF, seed=0)


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        (("vision_experts",), (), {"layers.1.mlp.pools.vision.gate_up", "layers.1.mlp.pools.vision.down"}),
        (("attention",), (r"[qkv]_proj",), {"layers.1.self_attn.o_proj"}),
        ((r"layers\.1\..*shared",), (), {f"layers.1.mlp.shared.{part}_proj" for part in ("gate", "up", "down")}),
    ],
)
def test_targets_by_name_and_by_pattern(model: ErnieModel, targets: tuple, exclude: tuple, expected: set) -> None:
    lora = LoraParameters(model, LoraConfig(rank=1, targets=targets, exclude=exclude))
    assert {name for name in lora.names if name.startswith("layers.1.")} == expected


def test_every_group_means_something(model: ErnieModel) -> None:
    names = [name for name in adapter_targets(model.config) if name != "lm_head"]
    chosen = {group: set(LoraConfig(rank=1, targets=(group,)).choose(names)) for group in GROUPS}
    assert chosen["all"] == set(names), "all but the routers, embeddings and head"
    assert chosen["decoder"] == chosen["attention"] | chosen["mlp"] | chosen["experts"]
    assert chosen["experts"] == chosen["text_experts"] | chosen["vision_experts"]
    assert not any("router" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, r"lora.rank \(-1\)"),
        ({"alpha": 0}, r"lora.alpha \(0\) must be above 0"),
        ({"dropout": 1.0}, r"lora.dropout \(1.0\)"),
        ({"targets": ("(",)}, r"lora.targets \('\('\) must be a regular expression"),
        ({"targets": ()}, r"lora.targets must name at least one"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ALL, **settings)


def test_targets_that_leave_nothing(model: ErnieModel) -> None:
    with pytest.raises(ConfigError, match=r"lora.targets \('q_projj'\) matches no projection .* names like vision_model"):
        LoraParameters(model, LoraConfig(rank=1, targets=("q_projj",)))
    with pytest.raises(ConfigError, match=r"lora.exclude \(decoder\) must leave some"):
        LoraParameters(model, LoraConfig(rank=1, targets=("attention",), exclude=("decoder",)))
    with pytest.raises(ConfigError, match=r"router.bias_rate \(0.01\) must be 0 with lora.rank"):
        trained_modules(model, ALL, RouterConfig(), seed=0)


def test_the_start_is_that_of_peft_and_a_function_of_the_seed(model: ErnieModel) -> None:
    first, again, other = (LoraParameters(model, ALL, seed) for seed in (1, 1, 2))
    name = "layers.1.mlp.pools.text.gate_up"
    a, b = first.parts()[name]
    assert a.shape == (4, 3, 16)
    assert 0.9 / 4 < a.detach().abs().max() <= 1 / 4, "uniform within 1 / sqrt(inputs)"
    assert not b.any()
    assert a.equal(again.parts()[name].a_LD)
    assert not a.equal(other.parts()[name].a_LD)


def test_dropout_is_drawn_by_the_batchs_noise_alone(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    modules = speaking(trained_modules(model, replace(ALL, dropout=0.3), OFF, seed=0))
    losses = [loss_of(modules, replace(picture_batch, noise=noise)).item() for noise in (5, 5, 6, None, None)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_the_optimiser_and_the_checkpoint_know_the_adapter_alone(
    model: ErnieModel, picture_batch: LanguageBatch, tmp_path: Path
) -> None:
    modules = trained_modules(model, ALL, OFF, seed=0)
    stage = Stage(
        name="lora",
        schedule=ScheduleConfig(num_steps=2, warmup_steps=0),
        batch=lambda step, shard: picture_batch,
        forward=lambda modules, batch: language_forward(modules["model"], with_lora(modules, batch)),
        objective=language_loss,
        objective_config=OFF,
        routers=OFF,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(modules, [stage], LoopConfig(num_shards=1, processes=1), OptimConfig(lr=0.01), Workers())
    assert trainer.run(Run(folder=tmp_path, fingerprint="x"))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "the model rests, routers too"
    counts = num_parameters(modules)
    assert 0 < counts["trained"] == sum(parameter.numel() for parameter in modules["lora"].parameters())
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert all(name.startswith("lora.") for name in state["parameters"])
    moved = {name: bool(parameter.any()) for name, parameter in modules["lora"].named_parameters() if name.endswith(".b")}
    assert [name for name, has_moved in moved.items() if not has_moved] == [
        f"{UNSEEN}{stack}.b" for stack in ("gate_up", "down")
    ]
