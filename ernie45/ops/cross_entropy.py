"""Cross-entropy straight from hidden states: the [R, V] logits never exist at once, forward or backward.

Knows nothing about tokens, shifting or which rows are trained.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops import rowwise
from ernie45.ops.matmul import product
from ernie45.ops.native import KINDS

CHUNK_ELEMENTS = 2**22
"""Logits computed at a time: 16 MB in fp32, which stays in a last-level cache instead of going through memory."""


class CrossEntropy(NamedTuple):
    """loss: fp32 scalar, with gradient. losses_R: fp32, unweighted. right_R: bool, whether the label is the likeliest token."""

    loss: Tensor
    losses_R: Tensor
    right_R: Tensor


def linear_cross_entropy(hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, row_weights_R: Tensor) -> CrossEntropy:
    """sum_r row_weights[r] * -log softmax(hidden[r] head^T)[labels[r]], and what it is made of.

    hidden [R, D], head [V, D], labels int64 [R] in 0 ... V - 1, row_weights fp32 [R]. Softmax is fp32.
    Only the loss has a gradient, to hidden and head. R may be 0.

    The weights are known before the backward pass, so gradients are computed chunk by chunk in the forward pass, where
    the logits are; the backward pass only scales them. Peak memory is one chunk instead of R * V.
    """
    return CrossEntropy(*_LinearCrossEntropy.apply(hidden_RD, head_VD, labels_R, row_weights_R))  # type: ignore[misc]


def linear_cross_entropy_reference(hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, row_weights_R: Tensor) -> CrossEntropy:
    """The same through whole logits."""
    logits_RV = F.linear(hidden_RD, head_VD).float()
    losses_R = F.cross_entropy(logits_RV, labels_R, reduction="none")
    return CrossEntropy((losses_R * row_weights_R).sum(), losses_R.detach(), logits_RV.detach().argmax(-1) == labels_R)


def softmax_rows(
    logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-log softmax(logits)[label] of each row, whether the label is the likeliest, and weight * (softmax - one-hot) if wanted.

    The logits may be overwritten. Softmax is fp32, or fp64 for logits of that type.
    """
    softmax = _compiled_softmax if rowwise.serves(logits_CV) else _softmax
    return softmax(logits_CV, labels_C, weights_C, wants_gradient)


def _softmax(
    logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses, hits, and weight * (softmax - one-hot) = d loss / d logits, in the dtype of the logits."""
    wide_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    labels_C1 = labels_C[:, None]
    logsumexp_C1 = wide_CV.logsumexp(-1, keepdim=True)
    right_C = wide_CV.argmax(-1) == labels_C
    losses_C = (logsumexp_C1 - wide_CV.gather(1, labels_C1))[:, 0]
    if not wants_gradient:
        return losses_C, right_C, None
    grad_CV = wide_CV.sub_(logsumexp_C1).exp_()
    grad_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1.0, dtype=grad_CV.dtype))
    return losses_C, right_C, grad_CV.mul_(weights_C[:, None]).to(logits_CV.dtype)


def _compiled_softmax(
    logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same in one pass; the gradient takes the place of the logits."""
    # What torch checks by itself; the kernel would read and write elsewhere.
    assert labels_C.dtype == torch.int64, labels_C.dtype
    assert not len(labels_C) or 0 <= labels_C.min() <= labels_C.max() < logits_CV.shape[1], labels_C
    losses_C = torch.empty(len(logits_CV))
    right_C = torch.empty(len(logits_CV), dtype=torch.bool)
    inputs = (logits_CV, labels_C.contiguous(), weights_C.float().contiguous(), *logits_CV.shape, int(wants_gradient))
    outputs, kind = (losses_C, right_C), KINDS[logits_CV.dtype]
    rowwise.KERNELS.call("ernie_cross_entropy", kind, *inputs, torch.get_num_threads(), *outputs)
    return losses_C, right_C, logits_CV if wants_gradient else None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, row_weights_R: Tensor):
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        wants_gradient = wants_hidden or wants_head
        num_rows, (vocab, _) = len(hidden_RD), head_VD.shape
        chunk = max(128, CHUNK_ELEMENTS // vocab)
        losses_R = torch.empty(num_rows, dtype=torch.float32, device=hidden_RD.device)
        right_R = torch.empty(num_rows, dtype=torch.bool, device=hidden_RD.device)
        hidden_grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        # Summed in fp32: a bf16 sum over chunks would lose the small ones.
        summed = head_VD.dtype == torch.float32 and num_rows > 0  # by the products themselves, the first of which begins
        make = torch.empty_like if summed else torch.zeros_like
        head_grad_VD = make(head_VD, dtype=torch.float32) if wants_head else None
        buffer = torch.empty(min(chunk, num_rows), vocab, dtype=hidden_RD.dtype, device=hidden_RD.device)
        for start in range(0, num_rows, chunk):
            rows = slice(start, min(start + chunk, num_rows))
            hidden_CD = hidden_RD[rows]
            logits_CV = product(hidden_CD, head_VD.T, buffer[: len(hidden_CD)])
            weights_C = row_weights_R[rows]
            losses_R[rows], right_R[rows], grad_CV = softmax_rows(logits_CV, labels_R[rows], weights_C, wants_gradient)
            if grad_CV is None:
                continue
            if hidden_grad_RD is not None:
                product(grad_CV, head_VD, hidden_grad_RD[rows])
            if head_grad_VD is not None:
                if summed:
                    product(grad_CV.T, hidden_CD, head_grad_VD, add=start > 0)
                else:
                    head_grad_VD += grad_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_grad_RD, head_grad_VD)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(losses_R, right_R)
        return (losses_R * row_weights_R).sum(), losses_R, right_R

    @staticmethod
    def backward(ctx, loss_grad: Tensor, *_: Tensor | None):
        hidden_grad_RD, head_grad_VD = ctx.saved_tensors
        if hidden_grad_RD is not None:
            hidden_grad_RD = hidden_grad_RD * loss_grad.to(hidden_grad_RD.dtype)
        if head_grad_VD is not None:
            head_grad_VD = (head_grad_VD * loss_grad).to(ctx.head_dtype)
        return hidden_grad_RD, head_grad_VD, None, None
