"""A whole DPO step, from token ids to gradients, against the step of TRL's real trainer on the same text model.

tests/golden/trl_text_model.py says how TRL's numbers were made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ernie45.checkpoint import load_model, save_model
from ernie45.config.inputs import ModelInput
from ernie45.config.preference import PreferenceConfig
from ernie45.config.train import RouterConfig
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.preference import EncodedPair, collate_pairs
from ernie45.model.multimodal import ErnieModel
from ernie45.train.preference import PreferenceOutputs, PreferenceSettings, answer_logprobs, pairs_of, preference_objective
from tests.golden.trl_text_model import GOLDEN, POLICY_SEED, REFERENCE_SEED, SETTINGS, fingerprints, text_model


def labelled(prompt: list[int], answer: list[int]) -> Labelled:
    ids = np.array(prompt + answer, dtype=np.int64)
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    labels[len(prompt) - 1 : -1] = answer
    inputs = ModelInput(
        token_ids=ids,
        is_vision=np.zeros(len(ids), dtype=bool),
        positions=np.repeat(np.arange(len(ids))[:, None], 3, axis=1),
        patches=np.zeros((0, 588), dtype=np.uint8),
        next_position=len(ids),
    )
    return Labelled(inputs, labels)


def ours(seed: int, folder: Path) -> ErnieModel:
    text_model(seed).save_pretrained(folder)
    return load_model(folder)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_whole_step_equals_trls(tmp_path: Path, num_shards: int) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    model, reference = ours(POLICY_SEED, tmp_path / "policy"), ours(REFERENCE_SEED, tmp_path / "reference")
    settings = PreferenceSettings(
        PreferenceConfig(beta=SETTINGS["beta"], sft_weight=SETTINGS["loss_weights"][1]), RouterConfig(aux_weight=0, z_weight=0)
    )
    pairs = [
        EncodedPair(labelled(row["prompt_ids"], row["chosen_ids"]), labelled(row["prompt_ids"], row["rejected_ids"]), 1.0)
        for row in golden["pairs"]
    ]
    weights = (1 / len(pairs), 1 / sum(len(row["chosen_ids"]) for row in golden["pairs"]))
    loss, sums = 0.0, {name: torch.zeros(2) for name in ("margin", "accuracy", "logprob_chosen")}
    for shard in range(num_shards):
        batch = collate_pairs(pairs[shard::num_shards], weights, 1 / num_shards)
        with torch.no_grad():
            reference_B2, _ = answer_logprobs(reference, batch)
        policy_B2, routers = answer_logprobs(model, batch)
        result = preference_objective(PreferenceOutputs(pairs_of(batch, policy_B2, reference_B2), routers), batch, settings)
        result.loss.backward()
        loss += result.loss.item()
        for name, total in sums.items():
            total += torch.tensor([float(value) for value in result.metrics[name]])
    assert loss == pytest.approx(golden["loss"], rel=1e-5)
    for ours_name, theirs in (
        ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
        ("logprob_chosen", "logps/chosen"),
    ):
        assert float(sums[ours_name][0] / sums[ours_name][1]) == pytest.approx(golden["metrics"][theirs], rel=1e-4)
    assert_equal_gradients(model, golden["gradients"], tmp_path / "gradients")


def assert_equal_gradients(model: ErnieModel, expected: dict[str, list[float]], folder: Path) -> None:
    """Ours travel the road of weights: written as a checkpoint, they have the names and the parts of theirs."""
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    save_model(model, folder)
    found = fingerprints(folder)
    compared = set(expected) & set(found)
    assert {name for name in expected if name not in compared} <= {name for name in expected if "correction_bias" in name}
    for name in compared - {name for name in compared if "correction_bias" in name}:
        norm, product = expected[name]
        assert found[name][0] == pytest.approx(norm, rel=1e-4, abs=1e-7), name
        assert found[name][1] == pytest.approx(product, abs=2e-4 * norm + 1e-7), name
