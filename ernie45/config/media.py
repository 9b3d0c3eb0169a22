"""What an operator or a request may say about pictures: how many, and with which processing.

Knows nothing about files, pixels or where the words came from.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from ernie45.config.errors import ConfigError
from ernie45.config.processor import ProcessorConfig

# Generous: what fits into the context decides. Videos are fewer, as one may take seconds of decoding.
DEFAULT_LIMIT_PER_PROMPT: Mapping[str, int] = MappingProxyType({"image": 100, "video": 10})
DEFAULT_PROCESSOR_CACHE_GIB = 1.0

_TEMPORAL_CONV_SIZE = 2
# FastDeploy's names: ours, and the type.
_KEYS: dict[str, tuple[str, type]] = {
    "image_min_pixels": ("image_min_pixels", int),
    "image_max_pixels": ("image_max_pixels", int),
    "video_min_pixels": ("video_min_pixels", int),
    "video_max_pixels": ("video_max_pixels", int),
    "video_target_frames": ("video_target_frames", int),
    "video_frames_sample": ("frames_sample", str),
    "video_min_frames": ("video_min_frames", int),
    "video_max_frames": ("video_max_frames", int),
    "video_fps": ("video_fps", float),
    "spatial_conv_size": ("merge_size", int),
    "temporal_conv_size": ("", int),
}
# A request may ask for less than the server is set to, never for more: whoever runs it has sized it.
_CEILINGS = {
    "image_min_pixels": "image_max_pixels",
    "image_max_pixels": "image_max_pixels",
    "video_min_pixels": "video_max_pixels",
    "video_max_pixels": "video_max_pixels",
    "video_target_frames": "video_max_frames",
    "video_min_frames": "video_max_frames",
    "video_max_frames": "video_max_frames",
}


def limit_per_prompt(value: Any, field: str = "limit_mm_per_prompt") -> dict[str, int]:
    """`{"image": 5}` over the defaults. 0 refuses a kind; audio may be named, as FastDeploy's default does: it is never taken.

    ConfigError for another kind or number.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f'{field} ({value!r}) must be an object such as {{"image": 100, "video": 10}}; correct it')
    limits = dict(DEFAULT_LIMIT_PER_PROMPT)
    for kind, number in value.items():
        if kind not in (*limits, "audio"):
            raise ConfigError(f"{field} has the unknown kind {kind!r}; known are image and video{_near(kind, limits)}")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{field}.{kind} ({number!r}) must be a whole number of at least 0; 0 refuses this kind")
        if kind in limits:
            limits[kind] = number
    return limits


def override_processor(
    config: ProcessorConfig, kwargs: Any, field: str = "mm_processor_kwargs", capped: bool = False
) -> ProcessorConfig:
    """A processor's config with some numbers changed, by FastDeploy's names.

    capped: whether `config` is also the most that may be asked for, as it is for a request. ConfigError for an unknown key, a
    wrong type, values that contradict each other, and sizes that the model's own weights fix.
    """
    changes: dict[str, Any] = {}
    for key, value in check_processor_kwargs(kwargs, field).items():
        fixed = {"spatial_conv_size": config.merge_size, "temporal_conv_size": _TEMPORAL_CONV_SIZE}.get(key, value)
        if value != fixed:
            raise ConfigError(f"{field}.{key} ({value}) must be {fixed}: the model's weights fix it; leave it out")
        ceiling = getattr(config, _CEILINGS[key]) if capped and key in _CEILINGS else None
        if ceiling is not None and value > ceiling:
            raise ConfigError(f"{field}.{key} ({value}) must be at most {ceiling}, what the server is set to; lower it")
        if _KEYS[key][0]:
            changes[_KEYS[key][0]] = value
    try:
        return replace(config, **changes)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error


def check_processor_kwargs(kwargs: Any, field: str = "mm_processor_kwargs") -> dict[str, Any]:
    """Keys and types alone, before a model is known. ConfigError for an unknown key or a wrong type."""
    if not isinstance(kwargs, Mapping):
        raise ConfigError(f'{field} ({kwargs!r}) must be an object such as {{"video_fps": 2}}; correct it')
    for key in kwargs:
        if key not in _KEYS:
            raise ConfigError(f"{field} has the unknown key {key!r}; known are {', '.join(_KEYS)}{_near(key, _KEYS)}")
    return {key: _typed(value, _KEYS[key][1], f"{field}.{key}") for key, value in kwargs.items()}


def _typed(value: Any, kind: type, field: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {int: "a whole number", float: "a number", str: "a text"}
        raise ConfigError(f"{field} ({value!r}) must be {words[kind]}; correct it")
    return value


def _near(word: Any, known: Mapping[str, Any]) -> str:
    near = get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
