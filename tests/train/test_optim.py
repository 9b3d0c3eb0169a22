"""Muon and AdamW over flat parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ernie45.config.train import OptimConfig
from ernie45.train.groups import group_table, kinds_of
from ernie45.train.muon import orthogonalise
from ernie45.train.optim import Optimizer


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.layers.0.self_attn.o_proj.weight": (8, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 12),
        "model.layers.1.mlp.pools.text.gate_up_weight": (4, 12, 8),
        "model.layers.1.mlp.pools.text.router.weight": (4, 8),
        "model.embed_tokens.weight": (16, 8),
        "model.norm.weight": (8,),
        "model.vision_model.blocks.0.attn.qkv.weight": (24, 8),
        "head.proj.weight": (3, 8),
    }
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give_gradients(optimizer: Optimizer, seed: int = 1) -> None:
    optimizer.flat.grads.copy_(torch.randn(optimizer.flat.grads.shape, generator=torch.Generator().manual_seed(seed)))


def step(optimizer: Optimizer, factor: float = 1.0, trains: Callable[[str], bool] = lambda name: True) -> None:
    batches = optimizer.select(trains)
    optimizer.step(batches, [factor] * len(batches))


@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (20, 4)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)) * 0.01
    values = torch.linalg.svdvals(orthogonalise(matrices, steps=5))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_orthogonalising_keeps_singular_directions() -> None:
    """For diagonal input the result is diagonal, as for the exact polar factor."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]
    result = orthogonalise(matrix, steps=5)[0]
    assert (result - torch.diag(result.diag())).abs().max() < 1e-6
    assert not orthogonalise(torch.zeros(2, 3, 4), steps=5).any()


def test_a_stack_of_experts_is_a_batch_of_matrices() -> None:
    """Newton-Schulz over [E, M, N] equals one expert at a time: experts do not mix."""
    stacked = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.stack([orthogonalise(matrix[None], steps=5)[0] for matrix in stacked])
    assert torch.allclose(orthogonalise(stacked, steps=5), one_by_one, atol=1e-6)


def test_kinds() -> None:
    config = OptimConfig(vision_lr_ratio=0.5, adam_lr_ratio=0.2, router_lr_ratio=0.1)
    kinds = kinds_of(parameters(), config)
    muon = {name for name, kind in kinds.items() if kind.muon}
    assert muon == {
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.pools.text.gate_up_weight",
        "model.vision_model.blocks.0.attn.qkv.weight",
    }
    assert kinds["model.layers.1.mlp.pools.text.router.weight"].lr_ratio == pytest.approx(0.02)
    assert kinds["model.vision_model.blocks.0.attn.qkv.weight"].lr_ratio == 0.5
    assert kinds["model.norm.weight"].lr_ratio == 0.2
    assert not kinds["model.norm.weight"].decays


def test_rates_by_pattern_and_by_layer_of_the_tower() -> None:
    names = [f"model.vision_model.blocks.{layer}.attn.qkv.weight" for layer in range(3)]
    shapes = {name: torch.zeros(4, 4) for name in [*names, "model.vision_model.patch_embed.weight", "model.norm.weight"]}
    config = OptimConfig(optimizer="adamw", vision_lr_ratio=0.5, vision_layer_decay=0.9, lr_ratios=("blocks.1=0.1", "norm=3"))
    ratios = {name: kind.lr_ratio for name, kind in kinds_of(shapes, config).items()}
    assert [ratios[name] for name in names] == pytest.approx([0.5 * 0.9**3, 0.5 * 0.9**2 * 0.1, 0.5 * 0.9])
    assert ratios["model.vision_model.patch_embed.weight"] == pytest.approx(0.5 * 0.9**4)
    assert ratios["model.norm.weight"] == 3.0
    assert not any(kind.muon for kind in kinds_of(parameters(), config).values())


def test_the_table_of_groups_says_what_learns_how() -> None:
    config = OptimConfig(lr=0.1, weight_decay=0.05, frozen=("embed_tokens",))
    rows = group_table(parameters(), config, lambda name: None if "vision" in name else 0.5)
    of_group = {row["group"]: row for row in rows}
    assert of_group["text experts"] == {
        "group": "text experts",
        "optimizer": "muon",
        "lr": 0.05,
        "weight_decay": 0.05,
        "tensors": 1,
        "parameters": 4 * 12 * 8,
    }
    assert {name for name, row in of_group.items() if row["optimizer"] == "frozen"} == {"embedding", "vision tower"}
    assert of_group["norms"]["weight_decay"] == 0
    assert sum(row["parameters"] for row in rows) == sum(parameter.numel() for parameter in parameters().values())


def test_frozen_parameters_are_left_alone() -> None:
    named = parameters()
    optimizer = Optimizer(named, OptimConfig(lr=0.1, frozen=("vision", "norm")))
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    give_gradients(optimizer)
    step(optimizer)
    rested = {name for name in named if torch.equal(named[name], before[name])}
    assert rested == {"model.vision_model.blocks.0.attn.qkv.weight", "model.norm.weight"}


def test_muon_equals_torchs_on_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch orthogonalises in bf16; in fp32 it is the same to rounding."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    config = OptimConfig(lr=0.02, weight_decay=0.1)
    named = parameters()
    name = "model.layers.0.mlp.down_proj.weight"
    twin = nn.Parameter(named[name].detach().clone())
    reference = torch.optim.Muon([twin], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    optimizer = Optimizer(named, config)
    for seed in range(4):
        give_gradients(optimizer, seed)
        grad = named[name].grad
        assert grad is not None
        twin.grad = grad.clone()
        step(optimizer)
        reference.step()
    assert torch.allclose(named[name], twin, atol=1e-5)


def test_masters_keep_updates_that_bf16_would_lose() -> None:
    """0.001 from 1.0 is below half a step of bf16: one is invisible in the model, four are not."""
    parameter = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = Optimizer({"model.norm.weight": parameter}, OptimConfig(optimizer="adamw", lr=1e-3))
    for steps in range(1, 5):
        parameter.grad = torch.ones(8, dtype=torch.bfloat16)
        optimizer.flat.zero_grad()
        optimizer.flat.collect()
        assert parameter.grad is None
        step(optimizer)
        assert torch.allclose(optimizer.flat.values, torch.tensor(1 - 1e-3 * steps), atol=1e-6)
        assert bool((parameter == 1).all()) == (steps == 1), steps
    assert parameter.dtype == torch.bfloat16
    assert torch.equal(parameter, optimizer.flat.values.bfloat16())


def test_gradients_of_shards_add_up_in_fp32() -> None:
    """1 + 0.001 is 1 in bf16."""
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    flat = Optimizer({"model.norm.weight": parameter}, OptimConfig()).flat
    for value in (1.0, *[0.001] * 100):
        parameter.grad = torch.full((4,), value, dtype=torch.bfloat16)
        flat.collect()
    assert torch.allclose(flat.grads, torch.tensor(1.1), atol=1e-3)


def test_muon_update_is_the_formula_and_has_the_promised_size() -> None:
    config = OptimConfig(lr=0.1, weight_decay=0.5)
    named = parameters()
    name = "model.layers.1.mlp.pools.text.gate_up_weight"
    optimizer = Optimizer(named, config)
    before = named[name].detach().clone()
    give_gradients(optimizer)
    grad = named[name].grad
    assert grad is not None
    momentum = (1 - config.muon_momentum) * grad
    ahead = (1 - config.muon_momentum) * grad + config.muon_momentum * momentum
    update = 0.2 * 12**0.5 * orthogonalise(ahead, 5)
    step(optimizer, 0.5)
    assert torch.allclose(named[name], before * (1 - 0.05 * 0.5) - 0.05 * update, atol=1e-6)
    assert 0.1 < update.square().mean().sqrt() < 0.25


def test_adamw_equals_torchs() -> None:
    config = OptimConfig(lr=0.02, adam_lr_ratio=0.5, weight_decay=0.1, adam_eps=1e-8)
    named = parameters()
    name = "model.embed_tokens.weight"
    twin = nn.Parameter(named[name].detach().clone())
    reference = torch.optim.AdamW([twin], lr=0.01, betas=config.adam_betas, eps=1e-8, weight_decay=0.1)
    optimizer = Optimizer(named, config)
    for seed in range(4):
        give_gradients(optimizer, seed)
        grad = named[name].grad
        assert grad is not None
        twin.grad = grad.clone()
        step(optimizer)
        reference.step()
    assert torch.allclose(named[name], twin, atol=1e-6)


def test_parameters_that_rest_keep_value_and_state() -> None:
    named = parameters()
    optimizer = Optimizer(named, OptimConfig(lr=0.1))
    give_gradients(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    step(optimizer, trains=lambda name: "vision" in name)
    changed = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    assert changed == {"model.vision_model.blocks.0.attn.qkv.weight"}
    state = optimizer.state_dict()
    assert all(not state[f"first.{name}"].any() for name in named if name not in changed)


def test_clipping_looks_at_the_chosen_parameters() -> None:
    named = parameters()
    optimizer = Optimizer(named, OptimConfig(clip_norm=1.0))
    give_gradients(optimizer)
    batches = optimizer.select(lambda name: "router" in name)
    grad = named["model.layers.1.mlp.pools.text.router.weight"].grad
    assert grad is not None
    norm = float(grad.norm())
    assert float(optimizer.clip(batches)) == pytest.approx(norm)
    assert float(grad.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(optimizer.clip(batches)) == pytest.approx(1.0, abs=1e-5)


def test_state_goes_into_a_fresh_optimizer() -> None:
    first, second = (Optimizer(parameters(), OptimConfig()) for _ in range(2))
    give_gradients(first)
    step(first)
    second.flat.load(first.flat.state_dict())
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        give_gradients(optimizer, seed=9)
        step(optimizer)
    assert torch.equal(first.flat.values, second.flat.values)
