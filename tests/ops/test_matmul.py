"""Products of our own in training against torch's, forwards and backwards; rows dealt out and put together.

Knows nothing about models.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import matmul, native
from ernie45.ops.feed_forward import feed_forward, feed_forward_reference
from ernie45.ops.moe import count_experts, moe_ffn, moe_ffn_reference
from ernie45.ops.rows import join_rows, split_rows


def has_avx512() -> bool:
    """Whether the compiler's own processor is one that the kernels are for."""
    made = subprocess.run(["c++", "-march=native", "-dM", "-E", "-x", "c++", "-"], input="", capture_output=True, text=True)
    return "__AVX512F__" in made.stdout


compiled = pytest.mark.skipif(shutil.which("c++") is None or not has_avx512(), reason="no C++ compiler or no AVX-512")
THREADS = pytest.mark.parametrize("threads", [1, 3])


def as_view(kind: str, rows: int, columns: int) -> Tensor:
    """Random numbers that lie row by row, column by column, with gaps, or in the middle of others."""
    if kind == "columns":
        return torch.randn(columns, rows).T
    if kind == "gaps":
        return torch.randn(rows, 2 * columns + 3)[:, ::2][:, :columns]
    return torch.randn(rows + 2, columns + 5)[1 : rows + 1, 2 : columns + 2] if kind == "middle" else torch.randn(rows, columns)


SIZES = st.sampled_from([0, 1, 2, 5, 6, 7, 15, 16, 17, 31, 63, 64, 65, 96, 97, 130])
DEPTHS = st.sampled_from([0, 1, 3, 16, 40, 255, 512, 513, 1100])
KINDS = st.sampled_from(["rows", "columns", "gaps", "middle"])


@compiled
@given(st.tuples(SIZES, SIZES, DEPTHS), KINDS, KINDS, st.booleans(), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=150)
def test_product(sizes: tuple[int, int, int], left: str, right: str, add: bool, threads: int) -> None:
    m, n, k = sizes
    torch.manual_seed(m + n + k)
    a, b, out = as_view(left, m, k), as_view(right, k, n), torch.randn(m + 1, n + 1)
    before, place = out.clone(), out[:m, :n]
    wanted = a.double() @ b.double() + (before[:m, :n] if add else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        assert matmul.serves(a, b, place)
        matmul.product(a, b, place, add=add)
    scale = (a.double().abs() @ b.double().abs()).amax().clamp_min(1.0) if m * n else 1.0
    assert (place - wanted).abs().sum() == 0 or (place - wanted).abs().max() <= 1e-6 * scale
    assert torch.equal(out[m], before[m])
    assert torch.equal(out[:, n], before[:, n])


@compiled
@pytest.mark.parametrize(("rows", "columns"), [(512, 96), (700, 64), (2048, 80)])
def test_columns_a_power_of_two_apart(rows: int, columns: int) -> None:
    """These are copied first, in runs."""
    a, b = torch.randn(columns, rows), torch.randn(columns, 48)
    assert torch.allclose(matmul.product(a.T, b, torch.empty(rows, 48)), a.T @ b, atol=1e-4)


@compiled
def test_a_row_is_the_same_in_any_company() -> None:
    """Not only equal: the same sum in the same order, whatever the number of rows and of threads."""
    x, weight = torch.randn(200, 700), torch.randn(90, 700)
    whole = matmul.product(x, weight.T, torch.empty(200, 90))
    for begin, end in [(0, 1), (3, 8), (7, 200), (100, 164)]:
        assert torch.equal(matmul.product(x[begin:end], weight.T, torch.empty(end - begin, 90)), whole[begin:end])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        assert torch.equal(matmul.product(x, weight.T, torch.empty(200, 90)), whole)


def compare(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor], node: str) -> None:
    """Equal results and gradients, and again with gradients of some inputs only. node: of the fast result."""
    for wanted in [(1 << len(inputs)) - 1, *(1 << i for i in range(len(inputs)))]:
        results = []
        for function in (fast, slow):
            leaves = [x.detach().clone().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(inputs)]
            out = function(*leaves)
            assert function is slow or node in type(out.grad_fn).__name__, out.grad_fn
            out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
            results.append([out, *(leaf.grad for leaf in leaves)])
        for mine, theirs in zip(*results, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert (mine - theirs).abs().max() <= 1e-5 * max(theirs.abs().max().item(), 1e-1)


@compiled
@THREADS
@pytest.mark.parametrize(("rows", "size", "width"), [(64, 16, 8), (77, 19, 33), (600, 48, 130)])
def test_linear(rows: int, size: int, width: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    compare(matmul.linear, F.linear, [torch.randn(rows, size), torch.randn(width, size)], "_Linear")
    x, bias = torch.randn(rows // 7, 7, size), torch.randn(width)
    if rows // 7 * 7 >= matmul.FEW_ROWS:
        compare(matmul.linear, F.linear, [x, torch.randn(width, size), bias], "Add")
    # A gradient that is no whole matrix: of a sum, one number seen from everywhere.
    x, weight = torch.randn(rows, size, requires_grad=True), torch.randn(width, size)
    matmul.linear(x, weight).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.sum(0).expand(rows, size), atol=1e-4)


@compiled
@THREADS
@pytest.mark.parametrize(("rows", "size", "width"), [(64, 16, 8), (513, 19, 33), (1300, 48, 40)])
def test_feed_forward(rows: int, size: int, width: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs = [torch.randn(rows, size), torch.randn(2 * width, size) / size**0.5, torch.randn(size, width) / width**0.5]
    compare(feed_forward, feed_forward_reference, inputs, "_FeedForward")


@compiled
@THREADS
@pytest.mark.parametrize("sizes", [(40, 16, 8, 4, 2), (300, 40, 24, 6, 3), (90, 17, 9, 5, 1)])
def test_experts(sizes: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows, size, width, experts, active = sizes
    scores = torch.randn(rows, experts)
    scores[:, 1] -= 99.0  # an expert without rows
    chosen = scores.topk(active).indices
    counts = count_experts(chosen, experts)
    inputs = [
        torch.randn(rows, size),
        torch.randn(experts, 2 * width, size) / size**0.5,
        torch.randn(experts, size, width) / width**0.5,
        torch.rand(rows, active),
    ]

    def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, gate_up, down, weights: function(x, gate_up, down, chosen, weights, counts)

    compare(run(moe_ffn), run(moe_ffn_reference), inputs, "_Experts")


@compiled
def test_what_the_kernels_do_not_take() -> None:
    x, weight = torch.randn(100, 8), torch.randn(4, 8)
    assert matmul.serves(x, weight)
    assert not matmul.serves(x.double(), weight.double())
    assert not matmul.serves(x.bfloat16(), weight.bfloat16())
    assert not matmul.serves(x, weight.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul.linear(x.requires_grad_(), weight).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(matmul.linear(x, weight), F.linear(x, weight))
    few = torch.randn(5, 8, requires_grad=True)
    assert "Linear" not in type(matmul.linear(few, weight).grad_fn).__name__


def test_without_the_kernels_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.Kernels, "available", False)
    x, gate_up, down = (torch.randn(*shape, requires_grad=True) for shape in [(100, 16), (24, 16), (16, 12)])
    assert torch.equal(feed_forward(x, gate_up, down), feed_forward_reference(x, gate_up, down))
    out = torch.ones(16, 24)
    assert torch.allclose(
        matmul.product(x.detach().T, torch.ones(100, 24), out, add=True), x.sum(0)[:, None].expand(16, 24) + 1
    )
    assert torch.allclose(matmul.product(x.detach(), gate_up.detach().T, torch.empty(100, 24)), x @ gate_up.T)


def test_kernels_that_a_processor_lacks_are_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on one without AVX-512, where the file compiles to nothing."""
    monkeypatch.setattr(native, "library", lambda name: type("Empty", (), {})())
    assert not native.Kernels("matmul", {"ernie_matmul": "p"}).available


def test_a_compiler_and_a_processor_mean_kernels() -> None:
    """Falling back is silent; this is not."""
    if shutil.which("c++") is None or not has_avx512():
        pytest.skip("no C++ compiler or no AVX-512")
    code = "from ernie45.ops import matmul; assert matmul.KERNELS.available"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_dealt_out_and_put_together() -> None:
    order = torch.randperm(20)
    lists = [order[:5], order[5:19], order[19:]]

    def fast(x: Tensor, y: Tensor) -> Tensor:
        parts = split_rows(x, lists)
        return join_rows([part * (i + 1) + y[i] for i, part in enumerate(parts)], lists)

    def slow(x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, index in enumerate(lists):
            out = out.index_add(0, index, x.index_select(0, index) * (i + 1) + y[i])
        return out

    compare(fast, slow, [torch.randn(20, 3), torch.randn(3)], "_Join")
    with pytest.raises(AssertionError):
        split_rows(torch.randn(21, 3), lists)
