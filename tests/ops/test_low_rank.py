"""Low-rank additions to a pool of experts: equal to experts whose weights hold W + B A, rows and gradients alike."""

import pytest
import torch

from ernie45.ops.low_rank import Dropout, ExpertAdapter, LowRank, Routed, add_product, fuse, moe_ffn_adapted, pad_rank
from ernie45.ops.moe import count_experts, moe_ffn_reference

ROWS, EXPERTS, ACTIVE, WIDTH, SIZE, RANK = 23, 5, 2, 16, 8, 3


def make(*shape: int, seed: int) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3).requires_grad_()


def make_pool() -> tuple[torch.Tensor, torch.Tensor, Routed]:
    generator = torch.Generator().manual_seed(0)
    experts_RA = torch.stack(
        [torch.randperm(EXPERTS - 1, generator=generator)[:ACTIVE] for _ in range(ROWS)]
    )  # the last has none
    weights_RA = torch.rand(ROWS, ACTIVE, generator=generator)
    routed = Routed(experts_RA, weights_RA, count_experts(experts_RA, EXPERTS))
    return make(EXPERTS, 2 * SIZE, WIDTH, seed=1), make(EXPERTS, WIDTH, SIZE, seed=2), routed


def pairs(seed: int) -> tuple[LowRank, LowRank]:
    gate_up = LowRank(make(EXPERTS, RANK, WIDTH, seed=seed), make(EXPERTS, 2 * SIZE, RANK, seed=seed + 1))
    return gate_up, LowRank(make(EXPERTS, RANK, SIZE, seed=seed + 2), make(EXPERTS, WIDTH, RANK, seed=seed + 3))


@pytest.mark.parametrize("which", ["both", "gate_up", "down"])
def test_an_adapted_pool_is_one_with_merged_weights(which: str) -> None:
    x_RD, (gate_up, down, routed), both = make(ROWS, WIDTH, seed=9), make_pool(), pairs(10)
    chosen = [pair if which in ("both", name) else None for name, pair in zip(("gate_up", "down"), both, strict=True)]
    adapter = ExpertAdapter(*(None if pair is None else pad_rank(pair) for pair in chosen))
    y_RD = moe_ffn_adapted(x_RD, gate_up, down, routed, [adapter])
    merged = [
        weight if pair is None else weight + pair.b_NL @ pair.a_LD for weight, pair in zip((gate_up, down), chosen, strict=True)
    ]
    expected_RD = moe_ffn_reference(x_RD, *merged, *routed)
    torch.testing.assert_close(y_RD, expected_RD, rtol=1e-5, atol=1e-6)
    leaves = [x_RD, *(tensor for pair in chosen if pair is not None for tensor in pair)]
    for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (y_RD, expected_RD)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_adapters_serve_their_own_rows() -> None:
    x_RD, (gate_up, down, routed) = make(ROWS, WIDTH, seed=9), make_pool()
    a_R = torch.zeros(ROWS, dtype=torch.bool)
    a_R[3:9] = True
    b_R = torch.zeros(ROWS, dtype=torch.bool)
    b_R[[1, 20]] = True
    a, b = (ExpertAdapter(*map(pad_rank, pairs(seed))) for seed in (10, 20))
    y_RD = moe_ffn_adapted(x_RD, gate_up, down, routed, [a._replace(rows_R=a_R), b._replace(rows_R=b_R)])
    alone = {name: moe_ffn_adapted(x_RD, gate_up, down, routed, own) for name, own in {"": [], "a": [a], "b": [b]}.items()}
    for row in range(ROWS):
        name = "a" if a_R[row] else "b" if b_R[row] else ""
        torch.testing.assert_close(y_RD[row], alone[name][row], rtol=1e-5, atol=1e-6)


def test_a_pool_without_rows_has_gradients_of_zero() -> None:
    gate_up, down, routed = make_pool()
    empty = Routed(routed.experts_RA[:0], routed.weights_RA[:0], torch.zeros_like(routed.counts_E))
    both = pairs(10)
    y_RD = moe_ffn_adapted(torch.zeros(0, WIDTH), gate_up, down, empty, [ExpertAdapter(*map(pad_rank, both))])
    assert y_RD.shape == (0, WIDTH)
    for grad in torch.autograd.grad(y_RD.sum(), [tensor for pair in both for tensor in pair]):
        assert not grad.any()


def test_fused_parts_reach_their_own_rows_only() -> None:
    x_TD, first, last = (
        make(4, 6, seed=1),
        LowRank(make(2, 6, seed=2), make(3, 2, seed=3)),
        LowRank(make(1, 6, seed=4), make(2, 1, seed=5)),
    )
    y_TN = add_product(torch.zeros(4, 8), x_TD, fuse([(0, first), (6, last)], 8))
    torch.testing.assert_close(y_TN[:, :3], x_TD @ first.a_LD.T @ first.b_NL.T)
    torch.testing.assert_close(y_TN[:, 6:], x_TD @ last.a_LD.T @ last.b_NL.T)
    assert not y_TN[:, 3:6].any()


def test_dropout_is_a_function_of_its_seed_and_place() -> None:
    x, dropout = torch.ones(200, 50), Dropout(0.25, 7)
    dropped = dropout(x, 3)
    assert dropped.equal(dropout(x, 3))
    assert not dropped.equal(dropout(x, 4))
    assert not dropped.equal(Dropout(0.25, 8)(x, 3))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
