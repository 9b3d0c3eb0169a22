"""The vision tower's first objective: every visual token says what it shows, in the decoder's own words.

Knows nothing about sequences. The head is the decoder's embedding, at rest: a token that shows a seven is drawn towards the
embedding of "7", one that shows a red circle towards the sum of " red" and " circle". What the tower then says, the decoder
already understands; it only has to learn where to look.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ernie45.data.tiny.batches import NOTHING, SHOWN, SightBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.processor.tokenizer import Tokenizer
from ernie45.train.objectives.loss import Loss


class SightOutputs(NamedTuple):
    """shown_RC: logits of each visual token over `SHOWN`."""

    shown_RC: Tensor


def word_counts(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """fp32 [C, V]: how often each token stands in the name of each of `SHOWN`; nothing has no name, so its logit is 0."""
    counts_CV = torch.zeros(len(SHOWN), vocab_size)
    for index, name in enumerate(SHOWN):
        if index != NOTHING:
            ids = tokenizer.encode(f" {name}" if " " in name else name)
            counts_CV[index].scatter_add_(0, torch.tensor(ids), torch.ones(len(ids)))
    return counts_CV


def sight_forward(model: ErnieModel, counts_CV: Tensor, batch: SightBatch) -> SightOutputs:
    """Tower and resampler; the logit of a name is the product with the sum of its embeddings."""
    names_CD = counts_CV @ model.embed_tokens.weight.detach().float()
    return SightOutputs(model.encode_vision(batch.vision).float() @ names_CD.T)


def sight_loss(outputs: SightOutputs, batch: SightBatch, config: object = None) -> Loss:
    """Cross entropy, averaged over a shard's visual tokens. Accuracy counts tokens that show something."""
    shown_R = batch.shown_R
    loss = F.cross_entropy(outputs.shown_RC, shown_R)
    filled_R = shown_R != NOTHING
    right_R = (outputs.shown_RC.detach().argmax(-1) == shown_R) & filled_R
    metrics: dict[str, tuple[Tensor | float, float]] = {
        "loss": (loss.detach() * len(shown_R), len(shown_R)),
        "accuracy": (right_R.sum(), int(torch.count_nonzero(filled_R))),
    }
    return Loss(loss * batch.share, metrics)
