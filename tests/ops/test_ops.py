"""Each kernel against its slow twin, forward and backward."""

import numpy as np
import pytest
import torch

from ernie45.ops.attention import packed_attention, packed_attention_reference, paged_attention
from ernie45.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from ernie45.ops.moe import count_experts, moe_ffn, moe_ffn_reference, route
from ernie45.ops.norm import rms_norm, rms_norm_reference
from ernie45.ops.rope import decoder_rope_table, rotate_interleaved, rotate_interleaved_reference


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return list(torch.autograd.grad(output, inputs, seed))


def assert_twins_agree(fast, slow, inputs: list[torch.Tensor], *others, generator: torch.Generator) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs]
    expected, actual = slow(*leaves, *others), fast(*leaves, *others)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    wanted, got = gradients(expected, leaves, generator), gradients(actual, leaves, generator)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cu_seqlens", [(0, 7), (0, 4, 8, 12), (0, 1, 6, 6, 13)])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention(generator: torch.Generator, cu_seqlens: tuple[int, ...], causal: bool) -> None:
    num_tokens = cu_seqlens[-1]
    q, k, v = (torch.randn(num_tokens, heads, 8, generator=generator) for heads in (6, 2, 2))
    assert_twins_agree(packed_attention, packed_attention_reference, [q, k, v], cu_seqlens, causal, generator=generator)


def test_packed_attention_of_nothing_still_has_gradients() -> None:
    q, k, v = (torch.zeros(0, heads, 8, requires_grad=True) for heads in (6, 2, 2))
    out = packed_attention(q, k, v, (0,), causal=True)
    assert out.shape == (0, 6, 8)
    assert all(grad.shape == x.shape for grad, x in zip(torch.autograd.grad(out.sum(), [q, k, v]), [q, k, v], strict=True))


@pytest.mark.parametrize(("new", "context"), [([1, 1, 1], [5, 9, 1]), ([3, 1, 6], [3, 8, 10]), ([0, 4], [5, 4]), ([1], [4])])
def test_paged_attention(generator: torch.Generator, new: list[int], context: list[int]) -> None:
    page_size, num_pages = 4, 12
    pages = torch.randperm(num_pages, generator=generator)
    k_all, v_all = (torch.randn(num_pages, page_size, 2, 8, generator=generator) for _ in range(2))
    table = torch.zeros(len(new), 3, dtype=torch.int64)
    queries, expected, used = [], [], 0
    for index, (length, total) in enumerate(zip(new, context, strict=True)):
        count = -(-total // page_size)
        table[index, :count] = pages[used : used + count]
        used += count
        k, v = (x[table[index, :count]].flatten(0, 1)[:total] for x in (k_all, v_all))
        q = torch.randn(length, 6, 8, generator=generator)
        queries.append(q)
        # The reference sees the whole sequence; only its last rows are asked for.
        whole = torch.cat([torch.zeros(total - length, 6, 8), q])
        expected.append(packed_attention_reference(whole, k, v, (0, total), causal=True)[total - length :])
    starts = [0, *np.cumsum(new).tolist()]
    actual = paged_attention(torch.cat(queries), k_all, v_all, table, starts, context)
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [0, 1, 5, 37])
def test_moe_ffn(generator: torch.Generator, num_rows: int) -> None:
    num_experts, hidden, ffn = 6, 16, 8
    x = torch.randn(num_rows, hidden, generator=generator)
    gate_up = torch.randn(num_experts, 2 * ffn, hidden, generator=generator) / 4
    down = torch.randn(num_experts, hidden, ffn, generator=generator) / 4
    routing = route(x, torch.randn(num_experts, hidden, generator=generator), torch.zeros(num_experts), 2, 1e-12)
    counts = count_experts(routing.experts_RA, num_experts)
    assert counts.tolist() == torch.bincount(routing.experts_RA.flatten(), minlength=num_experts).tolist()
    leaves = [x.requires_grad_(), gate_up.requires_grad_(), down.requires_grad_()]
    weights = routing.weights_RA.detach().requires_grad_()
    outputs = [fn(*leaves, routing.experts_RA, weights, counts) for fn in (moe_ffn, moe_ffn_reference)]
    with torch.no_grad():  # decode has a path of its own
        outputs.append(moe_ffn(*leaves, routing.experts_RA, weights, counts))
    torch.testing.assert_close(outputs.pop(), outputs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    got, wanted = (gradients(output, [*leaves, weights], generator) for output in outputs)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_correction_bias_chooses_but_does_not_weigh() -> None:
    x, weight = torch.randn(5, 8), torch.randn(4, 8)
    bias = torch.tensor([0.0, 0.0, 10.0, 0.0])
    plain, biased = (route(x, weight, b, 2, 1e-12) for b in (torch.zeros(4), bias))
    assert (biased.experts_RA == 2).any(-1).all(), "a large bias draws every row"
    assert torch.equal(plain.logits_RE, biased.logits_RE)
    probabilities = biased.logits_RE.softmax(-1).gather(-1, biased.experts_RA)
    torch.testing.assert_close(biased.weights_RA, probabilities / probabilities.sum(-1, keepdim=True))


def test_routing_is_fp32_whatever_the_input() -> None:
    x, weight = torch.randn(5, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        routing = route(x.bfloat16(), weight, torch.zeros(4), 2, 1e-12)
    assert routing.logits_RE.dtype == routing.weights_RA.dtype == torch.float32
    torch.testing.assert_close(routing.logits_RE, x.bfloat16().float() @ weight.T)


def test_rope(generator: torch.Generator) -> None:
    positions = torch.randint(0, 500, (9, 3), generator=generator)
    rotations = decoder_rope_table(positions, 16, 500000.0, (3, 3, 2))
    x = torch.randn(9, 2, 16, generator=generator)
    assert_twins_agree(
        lambda x: rotate_interleaved(x, rotations),
        lambda x: rotate_interleaved_reference(x, rotations),
        [x],
        generator=generator,
    )


def test_rope_axis_of_each_pair() -> None:
    """Pairs 0 to 43 alternate height, width; pairs 44 to 63 are time; frequencies fall by theta ** (-2j / 128)."""
    for axis, pairs in (("time", range(44, 64)), ("height", range(0, 44, 2)), ("width", range(1, 44, 2))):
        positions = torch.zeros(1, 3, dtype=torch.int64)
        positions[0, ("time", "height", "width").index(axis)] = 3
        angles = decoder_rope_table(positions, 128, 500000.0, (22, 22, 20)).angle().flatten()
        expected = torch.zeros(64)
        for pair in pairs:
            angle = 3 * 500000.0 ** (-2 * pair / 128)
            expected[pair] = np.arctan2(np.sin(angle), np.cos(angle))
        torch.testing.assert_close(angles, expected, rtol=1e-4, atol=1e-6)


def test_rms_norm(generator: torch.Generator) -> None:
    x, weight = torch.randn(9, 16, generator=generator), torch.randn(16, generator=generator)
    assert_twins_agree(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: rms_norm_reference(x, w, 1e-5),
        [x, weight],
        generator=generator,
    )
    half = x.detach().bfloat16()
    assert torch.equal(rms_norm(half, weight.bfloat16(), 1e-5), rms_norm_reference(half, weight.bfloat16(), 1e-5))


@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_linear_cross_entropy(generator: torch.Generator, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie45.ops.cross_entropy.CHUNK_ELEMENTS", 0)
    num_rows *= 40  # more than one chunk of 128 rows
    hidden = torch.randn(num_rows, 8, generator=generator).requires_grad_()
    head = torch.randn(12, 8, generator=generator).requires_grad_()
    labels = torch.randint(0, 12, (num_rows,), generator=generator)
    weights = torch.rand(num_rows, generator=generator)
    results = []
    for fn in (linear_cross_entropy, linear_cross_entropy_reference):
        terms = fn(hidden, head, labels, weights)
        results.append((*terms, *torch.autograd.grad(terms.loss * 3, [hidden, head])))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_linear_cross_entropy_in_bf16_and_with_a_frozen_head(generator: torch.Generator) -> None:
    hidden = torch.randn(30, 8, generator=generator).bfloat16().requires_grad_()
    head = torch.randn(12, 8, generator=generator).bfloat16()
    labels = torch.randint(0, 12, (30,), generator=generator)
    results = []
    for fn in (linear_cross_entropy, linear_cross_entropy_reference):
        loss, losses, _ = fn(hidden, head, labels, torch.ones(30))
        assert loss.dtype == losses.dtype == torch.float32
        results.append((loss, *torch.autograd.grad(loss, [hidden])))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
