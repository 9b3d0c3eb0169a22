"""The tiny model's shape, its processor and the files beside its weights: what its data is made for.

Knows nothing about training.
"""

import functools
import json
from pathlib import Path

from ernie45.config.model import ExpertPoolConfig, ModelConfig, VisionConfig
from ernie45.config.processor import ProcessorConfig
from ernie45.data.tiny.canvas import CELL
from ernie45.data.tiny.vocabulary import VOCAB_SIZE, tiny_special_tokens, train_tokenizer
from ernie45.processor import Processor

MAX_CELLS = 16
"""Visual tokens of a picture at most; larger pictures are shrunk to it."""


def tiny_config() -> ModelConfig:
    """Every part of ERNIE-4.5-VL-28B-A3B at small size: vision experts narrower than text experts, first layer dense."""
    pools = (
        ExpertPoolConfig(modality="text", num_experts=8, ffn_size=64, num_active=2),
        ExpertPoolConfig(modality="vision", num_experts=8, ffn_size=32, num_active=2),
    )
    return ModelConfig(
        hidden_size=96,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        intermediate_size=256,
        vocab_size=VOCAB_SIZE,
        expert_pools=pools,
        shared_ffn_size=64,
        rope_theta=100.0,  # few pairs and short texts: a larger base would leave most pairs without use
        mrope_section=(4, 4, 4),
        max_position_embeddings=2048,
        vision=VisionConfig(depth=3, hidden_size=64, num_heads=2, intermediate_size=128),
        tokens=tiny_special_tokens(),
    )


@functools.lru_cache(maxsize=1)
def tiny_processor() -> Processor:
    """A fresh tokenizer trained on the generated text, and picture sizes from 1 to 16 visual tokens. Always the same."""
    config = ProcessorConfig(
        image_min_pixels=CELL**2,
        image_max_pixels=MAX_CELLS * CELL**2,
        video_min_pixels=CELL**2,
        video_max_pixels=MAX_CELLS * CELL**2,
        video_max_frames=32,
        render_timestamp=False,
    )
    return Processor(train_tokenizer(), tokens=tiny_special_tokens(), config=config)


def write_processor_files(processor: Processor, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, preprocessor_config.json, chat_template.jinja and generation_config.json."""
    processor.save(folder)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    named |= {"cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>"}
    context = tiny_config().max_position_embeddings
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **named}
    _write(folder / "tokenizer_config.json", tokenizer)
    tokens = processor.tokens
    generation = {
        "bos_token_id": tokens.bos,
        "eos_token_id": [tokens.eos, tokens.end_of_turn],
        "pad_token_id": tokens.pad,
        "do_sample": False,
        "max_new_tokens": 256,
    }
    _write(folder / "generation_config.json", generation)


def _write(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
