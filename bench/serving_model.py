"""The 34 M VL shape as a folder that servers load: random weights, a tokenizer, a chat template.

Knows nothing about servers.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from bench.shapes import tiny_vl_34m
from ernie45.checkpoint import read_config, resolve_model, save_model
from ernie45.config.model import ModelConfig
from ernie45.model.multimodal import ErnieModel

COPIED = ("chat_template.jinja", "tokenizer_config.json", "preprocessor_config.json")


def serving_config() -> ModelConfig:
    """The shape of `tiny_vl_34m` with the special tokens of the shipped tokenizer."""
    shipped = read_config("tiny")
    return dataclasses.replace(tiny_vl_34m(), tokens=shipped.tokens)


def make_folder(folder: Path, dtype: torch.dtype) -> None:
    """Write the model in transformers' native layout, with the shipped tokenizer made as wide as the vocabulary."""
    config, source = serving_config(), Path(resolve_model("tiny"))
    torch.manual_seed(0)
    save_model(ErnieModel(config, dtype=dtype), folder, layout="native")
    for name in COPIED:
        shutil.copy(source / name, folder / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    # Tokens that no text has: they only give every id of the model a text.
    for token_id in range(len(vocabulary), config.vocab_size):
        vocabulary[f"▁w{token_id}"] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    generation = {"bos_token_id": 1, "eos_token_id": [config.tokens.eos, config.tokens.end_of_turn], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
