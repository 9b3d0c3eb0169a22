"""The compiled kernels of a training step against their slow twins, forwards and backwards.

Knows nothing about models.
"""

import itertools
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ernie45.ops import native, self_attention
from ernie45.ops.attention import paged_attention
from ernie45.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from ernie45.ops.norm import rms_norm, rms_norm_reference
from ernie45.ops.rope import decoder_rope_table
from ernie45.ops.self_attention import Heads, self_attention_reference
from ernie45.ops.swiglu import swiglu, swiglu_reference

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SECTIONS = {16: (3, 3, 2), 24: (4, 4, 4), 64: (11, 11, 10), 128: (22, 22, 20)}


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The kernels' own number of threads; torch keeps the one it has."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


def compare(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Equal results and equal gradients of all inputs. In bf16 the twin runs in fp32 on the same numbers."""
    results = []
    for function, wide in ((fast, False), (slow, dtype == torch.bfloat16)):
        leaves = [x.detach().clone().to(torch.float32 if wide else x.dtype).requires_grad_() for x in inputs]
        out = function(*leaves)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        out.backward(grad.to(out.dtype))
        results.append([out, *(leaf.grad for leaf in leaves)])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for mine, theirs in zip(*results, strict=True):
        scale = max(theirs.abs().max().item(), 1e-1)
        assert (mine.float() - theirs.float()).abs().max().item() <= tolerance * scale, (mine.shape, scale)


@DTYPES
@pytest.mark.parametrize("borders", [[0, 1], [0, 64], [0, 63, 63, 192, 197], [0, 7, 300]])
@pytest.mark.parametrize(("head_dim", "heads"), [(16, Heads(4, 4)), (24, Heads(4, 2)), (64, Heads(6, 2)), (128, Heads(2, 1))])
def test_self_attention(dtype: torch.dtype, borders: list[int], head_dim: int, heads: Heads, threads: int) -> None:
    torch.manual_seed(0)
    num_tokens = borders[-1]
    positions = torch.randint(0, 500, (num_tokens, 3))
    rotations = decoder_rope_table(positions, head_dim, 1e4, SECTIONS[head_dim])
    qkv = torch.randn(num_tokens, (heads.num_heads + 2 * heads.num_kv_heads) * head_dim).to(dtype)
    assert self_attention._KERNELS.available
    compare(
        lambda x: self_attention.self_attention(x, rotations, heads, borders),
        lambda x: self_attention_reference(x, rotations, heads, borders),
        [qkv],
        dtype,
    )


def test_attention_survives_scores_of_any_size() -> None:
    """Online softmax must not overflow, and what cannot be seen must not count."""
    rotations = decoder_rope_table(torch.zeros(130, 3, dtype=torch.int64), 16, 1e4, SECTIONS[16])
    for scale in (1e-20, 1.0, 60.0):
        qkv = (torch.randn(130, 48, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
        out = self_attention.self_attention(qkv, rotations, Heads(1, 1), [0, 130])
        torch.testing.assert_close(
            out, self_attention_reference(qkv, rotations, Heads(1, 1), [0, 130]), rtol=1e-4, atol=1e-5 * scale
        )
        out.sum().backward()
        assert qkv.grad is not None
        assert qkv.grad.isfinite().all()


@DTYPES
@pytest.mark.parametrize("size", [1, 15, 16, 45, 256])
def test_norm(dtype: torch.dtype, size: int, threads: int) -> None:
    x, w = (torch.randn(7, size) * 3).to(dtype), torch.randn(size).to(dtype)
    compare(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), [x, w], dtype)


@DTYPES
@pytest.mark.parametrize("size", [1, 16, 37, 192])
def test_swiglu(dtype: torch.dtype, size: int, threads: int) -> None:
    gate_up = (torch.randn(5, 2 * size) * 10).to(dtype)
    compare(swiglu, swiglu_reference, [gate_up], dtype)
    compare(lambda x, scale: swiglu(x, scale), lambda x, scale: swiglu_reference(x, scale), [gate_up, torch.rand(5)], dtype)


def test_swiglu_of_no_rows() -> None:
    x = torch.zeros(0, 8, requires_grad=True)
    swiglu(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)


@DTYPES
@pytest.mark.parametrize("vocab", [3, 16, 50, 333])
def test_cross_entropy(dtype: torch.dtype, vocab: int, threads: int) -> None:
    torch.manual_seed(0)
    hidden, head = (torch.randn(300, 8) * 2).to(dtype), torch.randn(vocab, 8).to(dtype)
    labels, weights = torch.randint(0, vocab, (300,)), torch.rand(300)
    compare(
        lambda h, w: linear_cross_entropy(h, w, labels, weights).loss,
        lambda h, w: linear_cross_entropy_reference(h, w, labels, weights).loss,
        [hidden, head],
        dtype,
    )
    mine, theirs = (f(hidden, head, labels, weights) for f in (linear_cross_entropy, linear_cross_entropy_reference))
    assert (mine.right_R == theirs.right_R).float().mean() > (0.97 if dtype == torch.bfloat16 else 0.999)


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.Kernels, "available", False)
    x = torch.randn(4, 12, requires_grad=True)
    torch.testing.assert_close(swiglu(x), swiglu_reference(x), rtol=0, atol=0)
    torch.testing.assert_close(rms_norm(x, torch.ones(12), 1e-5), rms_norm_reference(x, torch.ones(12), 1e-5))


@pytest.mark.parametrize("name", ["attention", "decode", "rowwise"])
def test_a_compiler_that_is_there_compiles_them(name: str) -> None:
    """A failed compilation only makes things slow, so nothing else would tell."""
    assert native.library(name) is not None


@DTYPES
@pytest.mark.parametrize(("head_dim", "heads"), [(16, Heads(4, 4)), (24, Heads(6, 2)), (64, Heads(3, 1))])
@pytest.mark.parametrize(("new", "context"), [([5], [70]), ([1, 3, 64, 0, 65], [130, 3, 129, 7, 66]), ([100], [300])])
def test_chunks_over_pages(
    dtype: torch.dtype, head_dim: int, heads: Heads, new: list[int], context: list[int], threads: int
) -> None:
    torch.manual_seed(0)
    page_size = 4
    counts = [-(-total // page_size) for total in context]
    order = torch.randperm(sum(counts) + 3)
    keys, values = (torch.randn(len(order), page_size, heads.num_kv_heads, head_dim).to(dtype) for _ in range(2))
    table = torch.zeros(len(new), max(counts), dtype=torch.int64)
    for index, count in enumerate(counts):
        table[index, :count] = order[sum(counts[:index]) :][:count]
    starts = [0, *itertools.accumulate(new)]
    q = torch.randn(starts[-1], heads.num_heads, head_dim).to(dtype)
    with torch.no_grad():
        mine = self_attention.attend_pages(q, (keys, values), table, starts, context)
        theirs = paged_attention(q.float(), keys.float(), values.float(), table, starts, context)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance)
