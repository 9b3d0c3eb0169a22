"""Routers that are told which experts to choose: the choice is the given one, weights and gradients are the router's own."""

from dataclasses import replace

import numpy as np
import torch

from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.model.batch import PackedBatch, pack
from ernie45.model.moe import experts_by_token
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.moe import route
from tests.small_model import pools, small_config


def batch_with_picture() -> PackedBatch:
    ids = np.array([5, 6, 92, 91, 91, 93, 7, 8, 9], dtype=np.int64)
    is_vision = np.isin(ids, (91, 92, 93))
    inputs = ModelInput(
        token_ids=ids,
        is_vision=is_vision,
        positions=np.repeat(np.arange(len(ids), dtype=np.int64)[:, None], 3, axis=1),
        patches=np.arange(8 * 12, dtype=np.uint8).reshape(8, 12),
        media=(MediaItem(kind="image", grid=(1, 2, 4), offset=3, length=2, content_hash=""),),
        next_position=len(ids),
    )
    return pack([inputs, replace(inputs, patches=inputs.patches[::-1].copy())])


def make_model(seed: int, **changes) -> ErnieModel:
    model = ErnieModel(small_config(num_layers=3, **changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def test_the_choice_of_another_model_is_replayed_with_own_weights_and_gradients():
    batch = batch_with_picture()
    first, second = make_model(0), make_model(1)
    chosen = experts_by_token(first(batch).routers, batch)
    own = experts_by_token(second(batch).routers, batch)
    assert (chosen != own).any(), "the two models choose alike; the test shows nothing"
    out = second(replace(batch, experts_TLA=chosen))
    assert torch.equal(experts_by_token(out.routers, batch), chosen)
    for layer in out.routers:
        for router in layer:
            probabilities = router.logits_RE.softmax(-1).gather(1, router.experts_RA)
            torch.testing.assert_close(router.weights_RA, probabilities / probabilities.sum(-1, keepdim=True))
    out.hidden_TD.square().sum().backward()
    for name, parameter in second.named_parameters():
        if "router" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


def test_replaying_ones_own_choice_changes_nothing_and_minus_one_leaves_the_choice_free():
    batch, model = batch_with_picture(), make_model(0)
    plain = model(batch)
    chosen = experts_by_token(plain.routers, batch)
    assert torch.equal(model(replace(batch, experts_TLA=chosen)).hidden_TD, plain.hidden_TD)
    assert torch.equal(model(replace(batch, experts_TLA=torch.full_like(chosen, -1))).hidden_TD, plain.hidden_TD)
    mixed = chosen.clone()
    mixed[::2] = -1
    assert torch.equal(model(replace(batch, experts_TLA=mixed)).hidden_TD, plain.hidden_TD)


def test_pools_of_different_activity_share_the_record():
    text, vision = pools(text=24)[0], pools(num_active=1, vision=16)[0]
    batch, model = batch_with_picture(), make_model(0, expert_pools=(text, vision))
    chosen = experts_by_token(model(batch).routers, batch)
    is_vision = torch.zeros(len(batch), dtype=torch.bool)
    is_vision[batch.vision_rows.index_R] = True
    assert (chosen[is_vision][..., 1] == -1).all()
    assert (chosen[~is_vision] >= 0).all()
    assert torch.equal(model(replace(batch, experts_TLA=chosen)).hidden_TD, model(batch).hidden_TD)


@torch.no_grad()
def test_a_few_rows_without_gradients_are_replayed_too():
    x, weight = torch.randn(3, 16), torch.randn(8, 16)
    replay = torch.tensor([[7, 6], [-1, -1], [0, 1]], dtype=torch.int16)
    free = route(x, weight, torch.zeros(8), 2, 1e-12)
    told = route(x, weight, torch.zeros(8), 2, 1e-12, replay)
    assert told.experts_RA.tolist()[::2] == [[7, 6], [0, 1]]
    assert set(told.experts_RA[1].tolist()) == set(free.experts_RA[1].tolist())
