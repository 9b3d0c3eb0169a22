"""The 34 M shapes as folders that servers load, ours and transformers': random weights, a tokenizer, a chat template.

Knows nothing about servers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from bench.shapes import tiny_vl_34m
from ernie45.checkpoint import read_config, resolve_model, save_model
from ernie45.config.model import ModelConfig
from ernie45.model.multimodal import ErnieModel

MAX_PIXELS = 1280 * 28 * 28  # the shipped model's pictures are of 16 tokens at most
# transformers finds out from the tokenizer how a prompt names a picture. It alone has a second id for the frames of a video.
PLACEHOLDERS = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
VIDEO_PROCESSOR = {"video_processor_type": "Ernie4_5_VLMoeVideoProcessor", "draw_on_frames": False}


def serving_config(*, text_only: bool = False, max_position_embeddings: int | None = None) -> ModelConfig:
    """The shape of `tiny_vl_34m` with the special tokens of the shipped tokenizer.

    text_only: its text part, which is the family's other architecture.  max_position_embeddings: another context.
    """
    config = dataclasses.replace(tiny_vl_34m(), tokens=read_config("tiny").tokens)
    if text_only:
        config = dataclasses.replace(config, vision=None, expert_pools=config.expert_pools[:1])
    if max_position_embeddings is not None:
        config = dataclasses.replace(config, max_position_embeddings=max_position_embeddings)
    return config


def make_folder(folder: Path, dtype: torch.dtype, config: ModelConfig | None = None) -> None:
    """Write the model in transformers' native layout, with the shipped tokenizer made as wide as the vocabulary."""
    config, source = config or serving_config(), Path(resolve_model("tiny"))
    torch.manual_seed(0)
    save_model(ErnieModel(config, dtype=dtype), folder, layout="native")
    # transformers renames the parts of a message before its template sees them.
    template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    template = template.replace("part.type == 'image_url'", "part.type in ('image', 'image_url')")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    pictures: dict[str, Any] = _read(source / "preprocessor_config.json")
    pictures |= {"image_max_pixels": MAX_PIXELS, "size": pictures["size"] | {"longest_edge": MAX_PIXELS}}
    _write(folder / "preprocessor_config.json", pictures)
    tokenizer = _read(source / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    # Tokens that no text has: they only give every id of the model a text.
    for token_id in range(len(vocabulary), config.vocab_size):
        vocabulary[f"▁w{token_id}"] = token_id
    _write(folder / "tokenizer.json", tokenizer)
    named = PLACEHOLDERS | {"video_token": f"▁w{config.vocab_size - 1}"}
    settings = _read(source / "tokenizer_config.json") | {"model_max_length": config.max_position_embeddings}
    _write(folder / "tokenizer_config.json", settings | named | {"extra_special_tokens": named})
    _write(folder / "video_preprocessor_config.json", VIDEO_PROCESSOR)
    generation = {"bos_token_id": 1, "eos_token_id": [config.tokens.eos, config.tokens.end_of_turn], "pad_token_id": 0}
    _write(folder / "generation_config.json", generation)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
