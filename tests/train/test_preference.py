"""Preference training on a small model with every part: forward, reference, and what must not matter."""

import math
from pathlib import Path

import pytest
import torch

from ernie45.config.data import DataConfig
from ernie45.config.preference import PreferenceConfig
from ernie45.config.train import RouterConfig
from ernie45.data.labelled import IGNORED
from ernie45.data.preference import PairBatches, PairSet, PreferenceBatch
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train import preference
from ernie45.train.preference import (
    HeldOutPairs,
    PreferenceOutputs,
    PreferenceSettings,
    ReferenceStore,
    answer_logprobs,
    model_key,
    pairs_of,
    preference_objective,
    shared_out,
)
from ernie45.train.workers import Workers

SETTINGS = PreferenceSettings(
    PreferenceConfig(losses=("sigmoid", "ipo:0.3"), sft_weight=0.5), RouterConfig(aux_weight=0, z_weight=0)
)


@pytest.fixture(scope="module")
def pairs(processor: Processor) -> PairSet:
    made = preference_pairs("test", 12, StripWriter(training_digits("fit")))
    return PairSet(made, RecordEncoder(processor, DataConfig()).encode, skip_bad=False)


@pytest.fixture(scope="module")
def text_pairs(processor: Processor) -> PairSet:
    made = preference_pairs("test", 80, StripWriter(training_digits("fit")), form_share=0.0)
    made = [pair for pair in made if isinstance(pair.prompt[0]["content"], str)]
    return PairSet(made, RecordEncoder(processor, DataConfig()).encode, skip_bad=False)


def backward(model: ErnieModel, pairs: PairSet, num_shards: int, pairs_per_step: int = 8) -> float:
    """Loss of a step, with its gradients in the model."""
    batches, total = PairBatches(pairs, pairs_per_step, num_shards, seed=0), 0.0
    for shard in range(num_shards):
        batch = batches(0, shard)
        policy_B2, routers = answer_logprobs(model, batch)
        outputs = PreferenceOutputs(pairs_of(batch, policy_B2, policy_B2.detach() - 0.3 * batch.margins_B[:, None]), routers)
        loss = preference_objective(outputs, batch, SETTINGS).loss
        loss.backward()
        total += loss.item()
    return total


def test_packed_answers_have_the_log_probabilities_of_single_ones(model: ErnieModel, pairs: PairSet) -> None:
    batch = PairBatches(pairs, 6, 1, seed=0)(0, 0)
    packed_B2, _ = answer_logprobs(model, batch)
    for number, place in enumerate(PairBatches(pairs, 6, 1, seed=0).places(0)):
        for side, labelled in enumerate(pairs[place][:2]):
            logits = model.logits(model(pack([labelled.inputs])).hidden_TD).float().log_softmax(-1)
            rows = [row for row, label in enumerate(labelled.labels_S) if label != IGNORED]
            expected = sum(logits[row, int(labelled.labels_S[row])].item() for row in rows)
            assert packed_B2[number, side].item() == pytest.approx(expected, rel=1e-5)


def test_shards_do_not_matter(model: ErnieModel, pairs: PairSet) -> None:
    results = []
    for num_shards in (1, 4):
        model.zero_grad()
        loss = backward(model, pairs, num_shards)
        results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


def test_vision_experts_learn_from_pictures_and_rest_without(model: ErnieModel, pairs: PairSet, text_pairs: PairSet) -> None:
    """All but the last layer's: nothing reads a picture's rows after them."""
    backward(model, pairs, 1)
    last = f"layers.{model.config.num_layers - 1}.mlp.pools.vision."
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != name.startswith(last), name
    model.zero_grad()
    backward(model, text_pairs, 1, pairs_per_step=4)
    vision = model.get_parameter("layers.1.mlp.pools.vision.gate_up_weight").grad
    assert vision is None or not vision.any()
    text = model.get_parameter("layers.1.mlp.pools.text.gate_up_weight").grad
    assert text is not None
    assert text.any()


def test_router_losses_reach_the_routers(model: ErnieModel, pairs: PairSet) -> None:
    batch = PairBatches(pairs, 4, 1, seed=0)(0, 0)
    gradients = []
    for weight in (0.0, 1.0):
        policy_B2, routers = answer_logprobs(model, batch)
        outputs = PreferenceOutputs(pairs_of(batch, policy_B2, policy_B2.detach()), routers)
        settings = PreferenceSettings(PreferenceConfig(), RouterConfig(aux_weight=weight, z_weight=0))
        loss = preference_objective(outputs, batch, settings).loss
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        gradients.append(torch.autograd.grad(loss, [model.get_parameter("layers.1.mlp.pools.vision.router.weight")])[0])
    assert not torch.allclose(*gradients)


def test_the_initial_model_against_its_stored_self(model: ErnieModel, pairs: PairSet, tmp_path: Path) -> None:
    batches = PairBatches(pairs, 8, 2, seed=0)
    batches.reference = ReferenceStore(tmp_path, model, Workers()).fill(pairs)
    settings = PreferenceSettings(PreferenceConfig(), SETTINGS.router)
    losses = []
    for shard in range(2):
        batch = batches(0, shard)
        policy_B2, routers = answer_logprobs(model, batch)
        losses.append(
            preference_objective(PreferenceOutputs(pairs_of(batch, policy_B2, batch.reference_B2), routers), batch, settings)
        )
    assert sum(loss.loss.item() for loss in losses) == pytest.approx(math.log(2), rel=1e-5)
    assert float(losses[0].metrics["margin"][0]) == pytest.approx(0, abs=1e-5)


def test_stored_references_are_computed_once(
    model: ErnieModel, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again when a run goes on, only what is missing after a kill, and all of it for another model."""
    passes: list[int] = []

    def counted(model: ErnieModel, batch: PreferenceBatch):
        passes.append(len(batch))
        return answer_logprobs(model, batch)

    monkeypatch.setattr(preference, "answer_logprobs", counted)
    first = ReferenceStore(tmp_path, model, Workers()).fill(pairs)
    assert (sum(passes), len(first)) == (12, 12)
    assert ReferenceStore(tmp_path, model, Workers()).fill(pairs) == first
    assert sum(passes) == 12
    file = tmp_path / preference.REFERENCE_FILE
    file.write_text(file.read_text()[:-100])
    again = ReferenceStore(tmp_path, model, Workers()).fill(pairs)
    assert sum(passes) == 13
    assert all(again[key] == pytest.approx(first[key]) for key in first)
    with torch.no_grad():
        model.norm.weight[0] += 0.1
    other = ReferenceStore(tmp_path, model, Workers()).fill(pairs)
    assert sum(passes) == 25
    assert other != first


def test_the_models_key_sees_weights_and_biases(model: ErnieModel) -> None:
    before = model_key(model)
    assert before == model_key(model)
    pool = model.get_submodule("layers.1.mlp.pools.text.router")
    pool.get_buffer("correction_bias").add_(0.5)
    assert model_key(model) != before


def test_every_process_makes_equally_many_passes() -> None:
    for num_pairs, processes in ((1, 3), (33, 2), (48, 3), (16, 1)):
        given = [list(shared_out(num_pairs, Workers(rank, processes))) for rank in range(processes)]
        assert len({len(passes) for passes in given}) == 1
        assert sorted(index for passes in given for own, counts in passes if counts for index in own) == list(range(num_pairs))


def test_held_out_means_are_over_all_pairs_and_by_source(pairs: PairSet) -> None:
    def metrics(modules: object, places: list[int]) -> dict[str, tuple[float, float]]:
        right = [place for place in places if pairs.facts[place].source == "short"]
        return {"accuracy": (len(right), len(places)), "margin": (float(sum(places)), len(places))}

    found = HeldOutPairs(pairs, metrics, Workers())({})  # type: ignore[arg-type]
    share = sum(fact.source == "short" for fact in pairs.facts) / 12
    by_source = {f"held_out_accuracy/{source}": float(source == "short") for source in ("right", "short", "sentence")}
    assert found == pytest.approx({"held_out_accuracy": share, "held_out_margin": 5.5, **by_source})
