"""Log-probabilities of chosen tokens straight from hidden states: the [R, V] logits never exist at once, forward or backward.

Knows nothing about sequences, pairs or policies. Unlike the cross entropy, what the rows' values are used for is not known in
the forward pass, so the backward pass computes each chunk of logits again.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.ops.cross_entropy import CHUNK_ELEMENTS, softmax_rows


class LogProbs(NamedTuple):
    """logprobs_R: natural logarithms, with gradient. entropies_R: of each row's whole distribution in nats, without."""

    logprobs_R: Tensor
    entropies_R: Tensor


def linear_logprobs(hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, temperature: float = 1.0) -> LogProbs:
    """log softmax(hidden[r] head^T / temperature)[labels[r]] of each row, and the entropy of that distribution.

    hidden [R, D], head [V, D] of one dtype, labels int64 [R] in 0 ... V - 1. Results are fp32 (fp64 for fp64 inputs), with
    gradient to hidden and head. R may be 0. Peak memory is one chunk of logits, forward and backward; the backward pass
    computes the logits a second time, and cannot be differentiated again.
    """
    assert temperature > 0, temperature
    return LogProbs(*_LinearLogProbs.apply(hidden_RD, head_VD, labels_R, temperature))  # type: ignore[misc]


def linear_logprobs_reference(hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, temperature: float = 1.0) -> LogProbs:
    """The same through whole logits."""
    logits_RV = F.linear(hidden_RD, head_VD)
    logprobs_RV = (_wide(logits_RV) / temperature).log_softmax(-1)
    with torch.no_grad():
        entropies_R = -(logprobs_RV.exp() * logprobs_RV).sum(-1)
    return LogProbs(logprobs_RV.gather(1, labels_R[:, None])[:, 0], entropies_R)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _chunks(num_rows: int, vocab: int) -> list[slice]:
    size = max(128, CHUNK_ELEMENTS // vocab)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_RD: Tensor, head_VD: Tensor, labels_R: Tensor, temperature: float):
        wide = torch.float64 if hidden_RD.dtype == torch.float64 else torch.float32
        logprobs_R, entropies_R = (torch.empty(len(hidden_RD), dtype=wide, device=hidden_RD.device) for _ in range(2))
        for rows in _chunks(len(hidden_RD), len(head_VD)):
            logits_CV = _wide(hidden_RD[rows] @ head_VD.T)
            # Shifted by the largest: then exp cannot overflow, and what is left of the entropy is a small difference.
            logits_CV.sub_(logits_CV.amax(-1, keepdim=True)).div_(temperature)
            exp_CV = logits_CV.exp()
            sum_C = exp_CV.sum(-1)
            log_sum_C = sum_C.log()
            logprobs_R[rows] = logits_CV.gather(1, labels_R[rows, None])[:, 0] - log_sum_C
            # exp is 0 where the logit is -inf; 0 * -inf would be nan.
            entropies_R[rows] = log_sum_C - exp_CV.mul_(logits_CV.clamp_min_(-1e4)).sum(-1) / sum_C
        ctx.save_for_backward(hidden_RD, head_VD, labels_R)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies_R)
        return logprobs_R, entropies_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_R: Tensor, _entropy_grad_R: Tensor | None):
        hidden_RD, head_VD, labels_R = ctx.saved_tensors
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        # Summed in fp32: a bf16 sum over chunks would lose the small ones.
        head_grad_VD = torch.zeros_like(head_VD, dtype=_wide(head_VD[:0]).dtype) if wants_head else None
        weights_R = grad_R.neg() / ctx.temperature
        for rows in _chunks(len(hidden_RD), len(head_VD)):
            hidden_CD = hidden_RD[rows]
            logits_CV = hidden_CD @ head_VD.T
            if ctx.temperature != 1:
                logits_CV.div_(ctx.temperature)
            _, _, grad_CV = softmax_rows(logits_CV, labels_R[rows], weights_R[rows], True)
            assert grad_CV is not None
            if hidden_grad_RD is not None:
                torch.mm(grad_CV, head_VD, out=hidden_grad_RD[rows])
            if head_grad_VD is not None:
                head_grad_VD += grad_CV.T @ hidden_CD
        return hidden_grad_RD, None if head_grad_VD is None else head_grad_VD.to(head_VD.dtype), None, None
