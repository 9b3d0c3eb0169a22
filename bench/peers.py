"""transformers' own ERNIE-4.5-VL class as a reference: built from our config, fed with our inputs.

Knows nothing about timing. The mapping of configs is written here a second time on purpose: a reference that used our
reader of config files could not find its mistakes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig

VIDEO_PLACEHOLDER_OFFSET = -1
"""transformers alone has a second placeholder id, for video. Tests give it the vocabulary's last id."""


def transformers_config(config: ModelConfig) -> Any:
    """Our ModelConfig of a multimodal model -> Ernie4_5_VLMoeConfig."""
    from transformers import Ernie4_5_VLMoeConfig

    return Ernie4_5_VLMoeConfig(
        text_config=_text_config(config),
        vision_config=_vision_config(config),
        image_token_id=config.tokens.image_patch,
        image_start_token_id=config.tokens.image_start,
        image_end_token_id=config.tokens.image_end,
        video_start_token_id=config.tokens.video_start,
        video_end_token_id=config.tokens.video_end,
        video_token_id=config.vocab_size + VIDEO_PLACEHOLDER_OFFSET,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _text_config(config: ModelConfig) -> dict[str, Any]:
    text, vision = config.pool("text"), config.pool("vision")
    assert text is not None
    assert vision is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": list(config.mrope_section),
        },
        "moe_k": text.num_active,
        "moe_num_experts": text.num_experts,
        "moe_intermediate_size": [text.ffn_size, vision.ffn_size],
        "moe_num_shared_experts": config.shared_ffn_size // text.ffn_size,
        "mlp_layer_types": ["sparse" if config.is_moe_layer(layer) else "dense" for layer in range(config.num_layers)],
    }


def _vision_config(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    assert vision is not None
    return {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "num_heads": vision.num_heads,
        "intermediate_size": vision.intermediate_size,
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
    }


def normalised(patches: np.ndarray) -> Tensor:
    """uint8 patches as transformers wants them: CLIP-normalised fp32."""
    mean, std = (
        torch.tensor(values).repeat_interleave(patches.shape[1] // 3)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    return (torch.from_numpy(patches).float() / 255 - mean) / std


def transformers_inputs(config: ModelConfig, inputs: Sequence[ModelInput]) -> dict[str, Tensor]:
    """Sequences of equal length -> keyword arguments of transformers' forward and generate, without positions."""
    ids, kinds = [], []
    pixels: dict[str, list[Tensor]] = {"image": [], "video": []}
    grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
    for item in inputs:
        token_ids, kind, patch = item.token_ids.copy(), np.zeros(len(item), np.int64), 0
        for medium in item.media:
            span = slice(medium.offset, medium.offset + medium.length)
            kind[span] = 1 if medium.kind == "image" else 2
            if medium.kind == "video":
                token_ids[span] = config.vocab_size + VIDEO_PLACEHOLDER_OFFSET
            num_patches = int(np.prod(medium.grid))
            pixels[medium.kind].append(normalised(item.patches[patch : patch + num_patches]))
            grids[medium.kind].append(medium.grid)
            patch += num_patches
        ids.append(token_ids)
        kinds.append(kind)
    out = {
        "input_ids": torch.from_numpy(np.stack(ids)),
        "mm_token_type_ids": torch.from_numpy(np.stack(kinds)),
        "moe_mm_token_type_ids": torch.from_numpy(np.stack([item.is_vision for item in inputs]).astype(np.int64)),
        "attention_mask": torch.ones(len(inputs), len(inputs[0]), dtype=torch.int64),
    }
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if pixels[kind]:
            out[f"pixel_values{suffix}"] = torch.cat(pixels[kind])
            out[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    return out


def transformers_positions(inputs: Sequence[ModelInput]) -> Tensor:
    """Our 3-D positions in the layout transformers takes, [3, B, S]."""
    return torch.from_numpy(np.stack([item.positions for item in inputs])).permute(2, 0, 1)
