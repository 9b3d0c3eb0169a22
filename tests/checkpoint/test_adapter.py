"""Adapters that we write: PEFT on transformers' classes, our own reader and the merged model all give the same logits."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from bench.peers import transformers_inputs
from ernie45.checkpoint import load_model
from ernie45.checkpoint.adapter import load_adapter
from ernie45.checkpoint.adapter_targets import adapter_targets
from ernie45.checkpoint.adapter_writer import AdapterForm, write_adapter
from ernie45.checkpoint.convert import Target
from ernie45.checkpoint.merge import merge
from ernie45.config.errors import CheckpointError
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.model import ModelConfig
from ernie45.model.batch import pack
from ernie45.model.lora import AdapterRows, LoraAdapter
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.low_rank import LowRank
from ernie45.processor.positions import MediaSpan, rope_positions

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]
TOLERANCE = 1e-5
FORM = AdapterForm(rank=3, alpha=5, rslora=False, base=None)


def parts_of(config: ModelConfig, rank: int = 3, head: bool = True) -> dict[str, LowRank]:
    """Random pairs for everything that can be adapted."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for target in adapter_targets(config).values():
        if target.name == "lm_head" and not head:
            continue
        sides = (torch.randn(shape, generator=generator) * 0.1 for shape in target.shapes(rank))
        found[target.name] = LowRank(*sides)
    return found


def sequence(config: ModelConfig) -> ModelInput:
    """Text, and a picture for a model that has eyes."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 110, 9).tolist()
    media, patches = (), np.zeros((0, 12), np.uint8)
    if config.is_multimodal:
        media = (MediaItem(kind="image", grid=(1, 4, 6), offset=10, length=6, content_hash="x"),)
        patches = rng.integers(0, 256, (24, 12), dtype=np.uint8)
        tokens = config.tokens
        ids += [tokens.image_start, *[tokens.image_patch] * 6, tokens.image_end, 7, 8]
    positions = rope_positions(len(ids), [MediaSpan(item.offset, item.grid) for item in media])
    token_ids = np.array(ids)
    return ModelInput(
        token_ids=token_ids,
        is_vision=np.isin(token_ids, config.tokens.vision_ids) if media else np.zeros(len(ids), bool),
        positions=positions.positions_SX,
        patches=patches,
        media=media,
        next_position=positions.next_position,
    )


@torch.no_grad()
def logits(model: ErnieModel, adapter: LoraAdapter | None, inputs: ModelInput) -> torch.Tensor:
    rows = () if adapter is None else (AdapterRows(adapter, None),)
    return model.logits(model(replace(pack([inputs]), adapters=rows)).hidden_TD, rows)


@torch.no_grad()
def their_logits(model: Any, config: ModelConfig, inputs: ModelInput) -> torch.Tensor:
    if config.is_multimodal:
        return model(**transformers_inputs(config, [inputs])).logits[0]
    return model(input_ids=torch.from_numpy(inputs.token_ids)[None]).logits[0]


@pytest.mark.parametrize("form", [FORM, replace(FORM, rslora=True)], ids=["plain", "rslora"])
@pytest.mark.parametrize("family", ["vl untied", "moe untied", "dense untied"])
def test_peft_our_reader_and_the_merged_model_agree(theirs: Callable, tmp_path: Path, family: str, form: AdapterForm) -> None:
    model, folder = theirs(family)
    ours = load_model(folder, dtype=torch.float32)
    inputs = sequence(ours.config)
    write_adapter(tmp_path / "adapter", parts_of(ours.config), ours.config, form)
    adapter = load_adapter(tmp_path / "adapter", ours)
    mine = logits(ours, adapter, inputs)
    assert (mine - logits(ours, None, inputs)).abs().max() > 1e-2, "the adapter must say something"
    peft = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "adapter")).eval()
    scale = mine.abs().max()
    torch.testing.assert_close(mine / scale, their_logits(peft, ours.config, inputs) / scale, rtol=0, atol=TOLERANCE)
    merge(folder, tmp_path / "adapter", Target(tmp_path / "merged", "pt"))
    merged = logits(load_model(tmp_path / "merged", dtype=torch.float32), None, inputs)
    torch.testing.assert_close(merged / scale, mine / scale, rtol=0, atol=TOLERANCE)


def test_a_part_of_the_model_can_be_adapted_alone(theirs: Callable, tmp_path: Path) -> None:
    """One stack of a pool, which PEFT then wraps once, and one third of a fused projection."""
    model, folder = theirs("vl")
    ours = load_model(folder, dtype=torch.float32)
    inputs, parts = sequence(ours.config), parts_of(ours.config)
    for place, name in enumerate(
        ["layers.1.mlp.pools.vision.down", "layers.2.mlp.pools.text.gate_up", "layers.0.self_attn.v_proj"]
    ):
        path = tmp_path / str(place)
        write_adapter(path, {name: parts[name]}, ours.config, FORM)
        peft = PeftModel.from_pretrained(copy.deepcopy(model), str(path)).eval()
        mine = logits(ours, load_adapter(path, ours), inputs)
        torch.testing.assert_close(mine, their_logits(peft, ours.config, inputs), rtol=1e-5, atol=TOLERANCE)


def test_merging_leaves_the_rest_bit_for_bit(theirs: Callable, tmp_path: Path) -> None:
    _, folder = theirs("vl")
    before = load_model(folder)
    name = "layers.1.mlp.pools.vision.down"
    write_adapter(tmp_path / "adapter", {name: parts_of(before.config)[name]}, before.config, FORM)
    merge(folder, tmp_path / "adapter", Target(tmp_path / "merged", "native"))
    after = load_model(tmp_path / "merged").state_dict()
    changed = [key for key, value in before.state_dict().items() if not value.equal(after[key])]
    assert changed == ["layers.1.mlp.pools.vision.down_weight"]


def test_a_tied_head_cannot_be_merged(theirs: Callable, tmp_path: Path) -> None:
    _, folder = theirs("dense")
    config = load_model(folder).config
    write_adapter(tmp_path / "adapter", {"lm_head": parts_of(config)["lm_head"]}, config, FORM)
    with pytest.raises(CheckpointError, match=r"changes lm_head.*--lora-modules"):
        merge(folder, tmp_path / "adapter", Target(tmp_path / "merged", "pt"))
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model_is_refused(theirs: Callable, tmp_path: Path) -> None:
    (_, folder), (_, other) = theirs("vl"), theirs("dense")
    config = load_model(folder).config
    write_adapter(tmp_path / "adapter", parts_of(config, head=False), config, FORM)
    with pytest.raises(CheckpointError, match="cannot have an adapter here"):
        merge(other, tmp_path / "adapter", Target(tmp_path / "merged", "pt"))
