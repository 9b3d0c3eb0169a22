"""The step meter: counts against the routers' own outputs, health by hand, and operations by hand."""

import math

import pytest
import torch

from ernie45.config.parameters import count_active, parameter_parts
from ernie45.data.packing import LanguageBatch
from ernie45.model.multimodal import ErnieModel
from ernie45.train.metrics import TABLE_EVERY, StepMeter, measured_peak_flops, step_flops
from ernie45.train.objectives.language import LanguageOutputs, language_forward
from ernie45.train.objectives.mtp import predicting_forward
from ernie45.train.routing import orthogonal_loss


def measured(model: ErnieModel, batches: list[LanguageBatch], step: int = 0) -> dict:
    meter = StepMeter(model, peak_flops=1e12)
    meter.begin()
    for batch in batches:
        meter.add(batch, language_forward(model, batch))
    meter.parts()
    return meter.entry(step, seconds=2.0, processes=1)


def test_counts_are_those_of_the_batches(model: ErnieModel, picture_batch: LanguageBatch, text_batch: LanguageBatch) -> None:
    entry = measured(model, [picture_batch, text_batch])
    tokens = len(picture_batch.packed) + len(text_batch.packed)
    assert entry["tokens"] == entry["tokens_text"] + entry["tokens_vision"] == tokens
    assert entry["tokens_vision"] == picture_batch.packed.vision_rows.count
    assert picture_batch.packed.vision is not None
    assert entry["patches"] == len(picture_batch.packed.vision.patches_PC)
    assert entry["pictures"] == len(picture_batch.packed.vision.grids)
    assert entry["tokens_per_second"] == tokens / 2
    assert entry["memory"] > 1e8


def test_router_health_by_hand(model: ErnieModel, picture_batch: LanguageBatch) -> None:
    entry = measured(model, [picture_batch])
    routers = [layer[1] for layer in language_forward(model, picture_batch).routers]
    loads = [router.tokens_per_expert_E / router.tokens_per_expert_E.sum() for router in routers]
    assert torch.allclose(torch.tensor(entry["vision_load"]), torch.stack(loads), atol=1e-4)
    assert entry["vision_violation"] == pytest.approx(max(float(load.max()) * 4 - 1 for load in loads))
    probabilities = [router.logits_RE.detach().softmax(-1) for router in routers]
    entropies = [float(-(p * p.log()).sum(-1).mean()) / math.log(4) for p in probabilities]
    assert entry["vision_entropy"] == pytest.approx(sum(entropies) / 2, rel=1e-4)
    gates = [model.layers[layer].mlp.pools["vision"].router.weight.detach() for layer in (1, 2)]
    assert entry["vision_orthogonality"] == pytest.approx(sum(float(orthogonal_loss(gate)) for gate in gates) / 2, rel=1e-5)


def test_tables_come_now_and_then_and_a_pool_without_tokens_says_nothing(model: ErnieModel, text_batch: LanguageBatch) -> None:
    entry = measured(model, [text_batch], step=TABLE_EVERY)
    assert len(entry["text_load"]) == 2
    assert not [name for name in entry if name.startswith("vision_")]
    assert "text_load" not in measured(model, [text_batch], step=TABLE_EVERY + 1)


def test_a_dropped_token_is_noticed(model: ErnieModel, text_batch: LanguageBatch) -> None:
    outputs = language_forward(model, text_batch)
    lost = outputs.routers[0][0].tokens_per_expert_E.clone()
    lost[lost.argmax()] -= 1
    broken = [[outputs.routers[0][0]._replace(tokens_per_expert_E=lost), outputs.routers[0][1]], outputs.routers[1]]
    meter = StepMeter(model, peak_flops=1e12)
    meter.add(text_batch, LanguageOutputs(outputs.hidden_RD, outputs.head_VD, broken))
    with pytest.raises(AssertionError):
        meter.parts()


def test_outputs_within_outputs_and_none_are_found(model: ErnieModel, text_batch: LanguageBatch) -> None:
    meter = StepMeter(model, peak_flops=1e12)
    meter.add(text_batch, predicting_forward(model, text_batch))
    assert meter.usage[0].sum() == 2 * len(text_batch.packed)
    meter.begin()
    meter.add(text_batch, object())
    assert not any(usage.sum() for usage in meter.usage)
    assert "text_violation" not in meter.entry(0, 1.0, 1)


def test_operations_are_six_a_weight_that_a_token_meets(model: ErnieModel) -> None:
    config = model.config
    parts = {part.name: part.num_params for part in parameter_parts(config)}
    assert step_flops(config, 10, 0, 0) == 60 * count_active(config, "text")
    with_pictures = 60 * count_active(config, "vision") + 6 * (40 * parts["ViT"] + 10 * parts["resampler"])
    assert step_flops(config, 0, 10, 40) == with_pictures
    assert measured_peak_flops(torch.device("cpu"), seconds=0.0) > 1e8
