"""The members of the ERNIE 4.5 family by name, each with what is not known for certain about it.

Knows nothing about weights: a preset is a shape, not a checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ernie45.config.errors import ConfigError
from ernie45.config.model import ExpertPoolConfig, Modality, ModelConfig, VisionConfig

TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration.

    unverified: fields that neither public code nor a release we have seen confirms, each with what stands behind it.
    """

    title: str
    config: Callable[[], ModelConfig]
    unverified: tuple[str, ...] = ()


def preset(name: str) -> ModelConfig:
    """The configuration of that name; ConfigError with the known names otherwise."""
    return find_preset(name).config()


def find_preset(name: str) -> Preset:
    """The preset of that name; ConfigError with the known names otherwise."""
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
    raise ConfigError(f"preset ({name!r}) must be one of {', '.join(PRESETS)}; {hint}")


def _pool(modality: Modality, ffn_size: int, num_active: int) -> ExpertPoolConfig:
    return ExpertPoolConfig(modality=modality, num_experts=64, ffn_size=ffn_size, num_active=num_active)


def _dense_0_3b() -> ModelConfig:
    return ModelConfig(hidden_size=1024, num_layers=18, num_heads=16, num_kv_heads=2, intermediate_size=3072)


def _a3b(*, vision: bool) -> ModelConfig:
    """The 28B model; without vision it is the 21B one, which has a multi-token-prediction layer in its place."""
    return ModelConfig(
        hidden_size=2560,
        num_layers=28,
        num_heads=20,
        num_kv_heads=4,
        intermediate_size=12288,
        expert_pools=(_pool("text", 1536, 6), _pool("vision", 512, 6)) if vision else (_pool("text", 1536, 6),),
        shared_ffn_size=2 * 1536,
        first_moe_layer=1,
        num_mtp_layers=0 if vision else 1,
        vision=VisionConfig() if vision else None,
    )


def _a47b(*, vision: bool) -> ModelConfig:
    return ModelConfig(
        hidden_size=8192,
        num_layers=54,
        num_heads=64,
        num_kv_heads=8,
        intermediate_size=28672,
        expert_pools=(_pool("text", 3584, 8), _pool("vision", 1536, 8)) if vision else (_pool("text", 3584, 8),),
        first_moe_layer=3,
        num_mtp_layers=0 if vision else 1,
        tie_word_embeddings=False,
        vision=VisionConfig() if vision else None,
    )


def _tiny() -> ModelConfig:
    from ernie45.config.model_json import config_from_json

    path = TINY_FOLDER / "config.json"
    try:
        return config_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(
            f"preset 'tiny' needs {path}, which is missing; reinstall ernie45 or run `ernie45 train tiny`"
        ) from error


PRESETS: dict[str, Preset] = {
    "tiny": Preset(title="the trained model in this package (text, images, video)", config=_tiny),
    "0.3b": Preset(title="ERNIE-4.5-0.3B (dense, text)", config=_dense_0_3b),
    "21b-a3b": Preset(
        title="ERNIE-4.5-21B-A3B (MoE, text)",
        config=lambda: _a3b(vision=False),
        unverified=("num_mtp_layers: reported by users of the released -PT config; its block is dense in public loaders",),
    ),
    "28b-a3b": Preset(title="ERNIE-4.5-VL-28B-A3B (MoE; text, images, video)", config=lambda: _a3b(vision=True)),
    "300b-a47b": Preset(
        title="ERNIE-4.5-300B-A47B (MoE, text)",
        config=lambda: _a47b(vision=False),
        unverified=(
            "vocab_size, tie_word_embeddings, num_mtp_layers: reported by users of the released -PT config",
            "num_mtp_layers: the block is taken to be dense, as in public loaders",
        ),
    ),
    "424b-a47b": Preset(
        title="ERNIE-4.5-VL-424B-A47B (MoE; text, images, video)",
        config=lambda: _a47b(vision=True),
        unverified=(
            "every figure: no public config was at hand; text side as in 300b-a47b",
            "vision expert width 1536: chosen because the total then comes to 424 B",
            "vision tower and resampler: taken to be those of 28b-a3b",
        ),
    ),
}
