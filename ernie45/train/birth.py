"""Birth of vision experts: each begins as a slice of a text expert, so that it starts with what the decoder's stream means.

Knows nothing about when in training this happens.
"""

import torch
from torch import Tensor

from ernie45.config.errors import ConfigError
from ernie45.model.moe import ExpertPool, HeterogeneousMoE
from ernie45.model.multimodal import ErnieModel


def birth_vision_experts(model: ErnieModel, scale: float | None = None) -> int:
    """Overwrite every vision expert with a slice of a text expert; returns how many were made. Routers keep their weights.

    Vision expert v of width F comes from text expert v mod E of width G:
        gate, up [F, D]: rows 0 ... F - 1 of the text expert's (row i mod G where F > G)
        down [D, F]: the same columns, each divided by how often it was taken, times `scale`
    In the released shape F = G / 3: the first third. With F >= G and scale 1 the born expert computes what the text expert does
    (Net2WiderNet, Chen et al., 2016), with F < G it is a part of that sum.

    scale: 1 / A by default, A the vision experts that a token visits. Source: Baidu's multimodal interleave callback takes the
    first third and divides down_proj by 6, a constant without a word of explanation; A is 6 in that model. Small outputs at
    birth leave the residual stream as it was, and the gates learn before the experts speak up.

    ConfigError for a model without both pools.
    """
    layers = [module for module in model.modules() if isinstance(module, HeterogeneousMoE)]
    pools = [(layer.pools["text"], layer.pools["vision"]) for layer in layers if {"text", "vision"} <= set(layer.pools)]
    if not pools:
        raise ConfigError("births (True) must be given for a model with text and vision experts; set births=false")
    born = 0
    for text, vision in pools:
        assert isinstance(text, ExpertPool), type(text)
        assert isinstance(vision, ExpertPool), type(vision)
        _bear(text, vision, 1 / vision.config.num_active if scale is None else scale)
        born += vision.config.num_experts
    return born


@torch.no_grad()
def _bear(text: ExpertPool, vision: ExpertPool, scale: float) -> None:
    parents_E = torch.arange(vision.config.num_experts) % text.config.num_experts
    rows_F = torch.arange(vision.config.ffn_size) % text.config.ffn_size
    gate_EGD, up_EGD = text.gate_up_weight[parents_E].chunk(2, dim=1)
    vision.gate_up_weight.copy_(torch.cat((gate_EGD[:, rows_F], up_EGD[:, rows_F]), dim=1))
    vision.down_weight.copy_(text.down_weight[parents_E][:, :, rows_F] * (scale / _times_taken(rows_F)))


def _times_taken(rows_F: Tensor) -> Tensor:
    """How often each row's parent was taken, fp32 [F]."""
    return torch.bincount(rows_F)[rows_F].float()
