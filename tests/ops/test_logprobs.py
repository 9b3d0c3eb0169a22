"""Log-probabilities in chunks against whole logits: values, entropies, gradients, memory.

Knows nothing about models.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ernie45.ops import cross_entropy, logprobs, native
from ernie45.ops.logprobs import linear_logprobs, linear_logprobs_reference

VOCAB, WIDTH = 333, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the least number of rows, 128: the inputs here are several."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)


def rows(num_rows: int = 300, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(num_rows, WIDTH, generator=generator) * 2).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, VOCAB, (num_rows,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_equals_whole_logits(
    dtype: torch.dtype, tolerance: float, compiled: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native.Kernels, "available", False)
    results = []
    for function in (linear_logprobs, linear_logprobs_reference):
        hidden, head, labels = rows(dtype=dtype)
        if function is linear_logprobs_reference and dtype == torch.bfloat16:
            hidden, head = (x.detach().float().requires_grad_() for x in (hidden, head))
        out = function(hidden, head, labels, temperature)
        assert not out.entropies_R.requires_grad
        weights = torch.linspace(-1, 2, len(hidden), dtype=out.logprobs_R.dtype)
        results.append([*out, *torch.autograd.grad((out.logprobs_R * weights).sum(), [hidden, head])])
        assert results[-1][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for mine, theirs in zip(*results, strict=True):
        scale = max(theirs.abs().max().item(), 1e-1)
        assert (mine.double() - theirs.double()).abs().max().item() <= tolerance * scale


def test_gradient_against_finite_differences() -> None:
    hidden, head, labels = rows(5, torch.float64)
    small_head = head.detach()[:7].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: linear_logprobs(h, w, labels % 7, 0.7).logprobs_R, [hidden, small_head])


def test_no_rows_and_frozen_inputs() -> None:
    hidden, head, labels = rows(0)
    linear_logprobs(hidden, head, labels).logprobs_R.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, WIDTH)
    assert head.grad is not None
    assert not head.grad.any()
    hidden, head, labels = rows(3)
    frozen = head.detach()
    [grad] = torch.autograd.grad(linear_logprobs(hidden, frozen, labels).logprobs_R.sum(), [hidden])
    [expected] = torch.autograd.grad(linear_logprobs_reference(hidden, frozen, labels).logprobs_R.sum(), [hidden])
    torch.testing.assert_close(grad, expected)


def test_survives_logits_of_any_size() -> None:
    """A sure thing has log-probability 0 and entropy 0, and nothing overflows on the way."""
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    out = linear_logprobs(hidden, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0, 0]))
    assert out.logprobs_R.tolist() == [0.0, -2000.0]
    assert out.entropies_R.tolist() == [0.0, 0.0]
    out.logprobs_R.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return result


@pytest.mark.parametrize("compiled", [True, False])
def test_whole_logits_never_exist(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native.Kernels, "available", False)
    hidden, head, labels = rows(128 * 6)
    with LargestTensor() as seen:
        linear_logprobs(hidden, head, labels).logprobs_R.sum().backward()
    assert seen.elements == 128 * VOCAB
    with LargestTensor() as seen:
        linear_logprobs_reference(hidden, head, labels).logprobs_R.sum().backward()
    assert seen.elements == len(hidden) * VOCAB


def test_agrees_with_the_cross_entropy() -> None:
    hidden, head, labels = rows()
    losses = cross_entropy.linear_cross_entropy(hidden, head, labels, torch.ones(len(labels))).losses_R
    torch.testing.assert_close(-linear_logprobs(hidden, head, labels).logprobs_R, losses)
