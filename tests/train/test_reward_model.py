"""The reward model: its head sees an answer's last token, gradients, files, scoring."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ernie45.checkpoint import load_model
from ernie45.config.data import DataConfig
from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.presets import TINY_FOLDER
from ernie45.config.reward_model import RewardModelConfig
from ernie45.config.train import RouterConfig
from ernie45.data.preference import PairBatches, PairSet
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.preference import preference_pairs
from ernie45.data.tiny.strips import StripWriter
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train import reward_model
from ernie45.train.reward_model import (
    HEAD_FILE,
    RewardModel,
    RewardSettings,
    new_reward_head,
    read_reward_head,
    reward_forward,
    reward_objective,
    write_reward_head,
)

SETTINGS = RewardSettings(RewardModelConfig(), RouterConfig(aux_weight=0, z_weight=0))


@pytest.fixture(scope="module")
def pairs(processor: Processor) -> PairSet:
    made = preference_pairs("test", 8, StripWriter(training_digits("fit")))
    return PairSet(made, RecordEncoder(processor, DataConfig()).encode, skip_bad=False)


def test_rewards_are_those_of_the_last_tokens(model: ErnieModel, pairs: PairSet) -> None:
    modules = {"model": model, "head": new_reward_head(model.config.hidden_size, seed=1)}
    batches = PairBatches(pairs, 6, 1, seed=0)
    found_B2 = reward_forward(modules, batches(0, 0)).rewards_B2
    for number, place in enumerate(batches.places(0)):
        for side, labelled in enumerate(pairs[place][:2]):
            alone_TD = model(pack([labelled.inputs])).hidden_TD
            assert found_B2[number, side].item() == pytest.approx(
                float((alone_TD[-1] @ modules["head"].weight[0]).detach()), rel=1e-4
            )


def test_shards_do_not_matter_and_everything_learns(model: ErnieModel, pairs: PairSet) -> None:
    modules = nn.ModuleDict({"model": model, "head": new_reward_head(model.config.hidden_size, seed=1)})
    results = []
    for num_shards in (1, 3):
        modules.zero_grad()
        batches, total = PairBatches(pairs, 6, num_shards, seed=0), 0.0
        for shard in range(num_shards):
            batch = batches(0, shard)
            loss = reward_objective(reward_forward(modules, batch), batch, SETTINGS).loss
            loss.backward()
            total += loss.item()
        results.append((total, {name: p.grad.clone() for name, p in modules.named_parameters() if p.grad is not None}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)
    last = f"layers.{model.config.num_layers - 1}.mlp.pools.vision."
    resting = [name for name, grad in results[0][1].items() if not grad.any()]
    assert resting
    assert all(name.startswith(f"model.{last}") for name in resting), resting


def question(text: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer, **more}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head that was never trained."""
    path = tmp_path_factory.mktemp("reward")
    for file in TINY_FOLDER.iterdir():
        (path / file.name).symlink_to(file)
    write_reward_head(new_reward_head(96, seed=3), path)
    return path


def test_scores_do_not_depend_on_company_or_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RewardModel.load(folder)
    picture = {"type": "image", "image": Image.new("RGB", (56, 28), "white")}
    conversations = [question(f"What is {n}+1?", str(n + 1)) for n in range(5)]
    conversations += [question("What is 2+1?", "3", reasoning_content="2+1=3")]
    conversations += [
        [{"role": "user", "content": [picture, {"type": "text", "text": "Read the digits."}]}, *question("", "7")[1:]]
    ]
    scores = scorer.score(conversations)
    assert len(set(scores)) == len(conversations)
    monkeypatch.setattr(reward_model, "_TOKENS_PER_PASS", 40)
    assert scorer.score(conversations[::-1])[::-1] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert scorer.score([]) == []


def test_what_cannot_be_scored_names_its_number(folder: Path) -> None:
    scorer = RewardModel.load(folder)
    good = question("Hi", "Hello!")
    with pytest.raises(RequestError, match="conversation 1 must end with a message of the assistant"):
        scorer.score([good, good[:1]])
    with pytest.raises(RequestError, match=r"conversation 0 has \d+ tokens, more than the context of 2048"):
        scorer.score([question("Hi", "7" * 3000)])


def test_a_folder_without_a_head_or_with_another_ones_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has no {HEAD_FILE}; give a folder that"):
        RewardModel.load("tiny")
    write_reward_head(new_reward_head(12, seed=0), tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold one tensor `weight`, F32 \[1, 96\]"):
        read_reward_head(tmp_path, 96)
    torch.testing.assert_close(
        read_reward_head(tmp_path, 12).weight, new_reward_head(12, seed=0).weight.detach(), rtol=0, atol=0
    )
    assert load_model(folder).config.hidden_size == 96, "the head is no part of the model's own weights"
