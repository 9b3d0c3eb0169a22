"""The compiled kernels of a decode step against the ops they stand in for."""

import pytest
import torch
from torch.nn import functional as F

from ernie45.ops import decode, native
from ernie45.ops.attention import paged_attention
from ernie45.ops.moe import count_experts, moe_ffn_reference
from ernie45.ops.rope import decoder_rope_table, rotate_interleaved_reference

pytestmark = pytest.mark.skipif(native.library("decode") is None, reason="no C++ compiler")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
ROWS = pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 32])


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape) / shape[-1] ** 0.5).to(dtype)


def check(y: torch.Tensor, expected: torch.Tensor) -> None:
    """In bf16 the expected values are those of fp32 on the same numbers; rounding of results and of what is between."""
    tolerance = 1e-5 if y.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)


@DTYPES
@ROWS
@pytest.mark.parametrize(("size", "width"), [(64, 32), (50, 33), (7, 1)])
def test_linear(num_rows: int, size: int, width: int, dtype: torch.dtype):
    x, w = torch.randn(num_rows, size).to(dtype), random(width, size, dtype=dtype)
    check(decode.linear(x, w), F.linear(x.float(), w.float()))


@DTYPES
@ROWS
def test_ffn_and_experts(num_rows: int, dtype: torch.dtype):
    num_experts, num_active, size, width = 6, 3, 40, 24
    x = torch.randn(num_rows, size).to(dtype)
    gate_up, down = random(num_experts, 2 * width, size, dtype=dtype), random(num_experts, size, width, dtype=dtype)
    router, bias = random(num_experts, size) * 4, torch.randn(num_experts) * 0.1
    logits, experts, weights = decode.route(x, router, bias, num_active, 1e-12)
    p = F.linear(x.float(), router).softmax(-1)
    expected = (p + bias).topk(num_active).indices
    torch.testing.assert_close(logits, F.linear(x.float(), router), atol=1e-5, rtol=1e-5)
    assert torch.equal(experts, expected)
    chosen = p.gather(-1, expected)
    torch.testing.assert_close(weights, chosen / chosen.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
    counts = count_experts(experts, num_experts)
    y = moe_ffn_reference(x.float(), gate_up.float(), down.float(), experts, weights, counts)
    check(decode.moe_ffn(x, gate_up, down, experts, weights), y)
    gate, up = F.linear(x.float(), gate_up[0].float()).chunk(2, dim=-1)
    check(decode.ffn(x, gate_up[0], down[0]), F.linear(F.silu(gate) * up, down[0].float()))


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_does_not_depend_on_its_company_nor_on_threads(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, down = torch.randn(32, 200).to(dtype), random(2 * 72, 200, dtype=dtype), random(200, 72, dtype=dtype)
    experts, weights = torch.randint(0, 4, (32, 1)).repeat(1, 2), torch.rand(32, 2)
    experts[:, 1] = (experts[:, 0] + 1) % 4
    gate_up_E, down_E = random(4, 2 * 72, 200, dtype=dtype), random(4, 200, 72, dtype=dtype)

    def everything(rows: slice) -> list[torch.Tensor]:
        part = x[rows], experts[rows].contiguous(), weights[rows].contiguous()
        return [
            decode.linear(part[0], w),
            decode.ffn(part[0], w, down),
            decode.moe_ffn(part[0], gate_up_E, down_E, part[1], part[2]),
        ]

    alone = [torch.cat(each) for each in zip(*(everything(slice(r, r + 1)) for r in range(32)), strict=True)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for size in (1, 2, 3, 7, 8, 32):
        together = [torch.cat(each) for each in zip(*(everything(slice(r, r + size)) for r in range(0, 32, size)), strict=True)]
        for mine, expected in zip(together, alone, strict=True):
            assert torch.equal(mine, expected), (size, threads)


@DTYPES
def test_attention(dtype: torch.dtype):
    num_heads, num_kv_heads, head_dim, page_size = 6, 2, 16, 4
    lengths = (1, 4, 5, 13)
    num_rows = len(lengths)
    keys, values = (torch.randn(20, page_size, num_kv_heads, head_dim).to(dtype) for _ in range(2))
    table = torch.randperm(20)[: num_rows * 4].view(num_rows, 4)
    slots = torch.tensor([table[r, (n - 1) // page_size] * page_size + (n - 1) % page_size for r, n in enumerate(lengths)])
    qkv = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    before = qkv.clone()
    turns = decoder_rope_table(torch.randint(0, 99, (num_rows, 3)), head_dim, 1e4, (3, 3, 2))
    heads = qkv.float().unflatten(-1, (-1, head_dim))
    turned = rotate_interleaved_reference(heads[:, : num_heads + num_kv_heads], turns)
    q, k, v = turned[:, :num_heads], turned[:, num_heads:], heads[:, num_heads + num_kv_heads :]
    expected_pages = keys.clone(), values.clone()
    for pages, new in zip(expected_pages, (k, v), strict=True):
        pages.flatten(0, 1)[slots] = new.to(dtype)
    keys_wide, values_wide = (pages.float() for pages in expected_pages)
    expected = paged_attention(q, keys_wide, values_wide, table, range(num_rows + 1), lengths).flatten(1)
    out = decode.attention(qkv, turns, num_heads, (keys, values), decode.Places(slots, table, lengths))
    check(out, expected)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # a last bit may round the other way
    torch.testing.assert_close(keys, expected_pages[0], atol=tolerance, rtol=tolerance)
    assert torch.equal(values, expected_pages[1])
    assert torch.equal(qkv, before)


def test_what_it_serves(monkeypatch: pytest.MonkeyPatch):
    x = torch.zeros(3, 8)
    assert decode.serves(x)
    assert not decode.serves(x[:0])
    assert not decode.serves(torch.zeros(decode.MAX_ROWS + 1, 8))
    assert not decode.serves(x.double())
    with torch.enable_grad():
        assert not decode.serves(x)
    monkeypatch.setattr(type(decode._KERNELS), "available", False)
    assert not decode.serves(x)


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("CXX", "no-such-compiler"), ("ERNIE45_NATIVE", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert native.library.__wrapped__("decode") is None
    monkeypatch.setenv("CXX", "false")
    assert native.library.__wrapped__("decode") is None
    assert not list((tmp_path / "ernie45").glob("*.so"))
