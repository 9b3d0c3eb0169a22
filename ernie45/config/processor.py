"""How pictures become patches: the numbers of `preprocessor_config.json` as one frozen dataclass.

Knows nothing about files, pixels or text.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ernie45.config.errors import ConfigError

FramesSample = Literal["leading", "middle"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3

# Keys that published preprocessor files carry and that change nothing here: they name classes of other programs, repeat
# a constant, or belong to a step that this processor always or never takes. Anything else that is unknown is refused.
_IGNORED_KEYS = frozenset(
    (
        *("auto_map", "processor_class", "image_processor_type", "feature_extractor_type", "video_processor_type"),
        *("data_format", "input_data_format", "device", "disable_grouping", "return_tensors", "return_metadata"),
        *("do_center_crop", "crop_size", "do_pad", "pad_size", "default_to_square", "image_seq_length", "video_metadata"),
        *("temporal_conv_size", "temporal_patch_size", "do_sample_frames", "font", "tokenizer", "chat_template"),
        *("do_rescale", "do_normalize"),  # false in the remote code; there the model normalises its patches, as it does here
    )
)
# Steps that can be turned off elsewhere but that the model was trained with; another value is an error.
_REQUIRED = {"do_convert_rgb": True, "do_resize": True, "resample": _BICUBIC}
# The remote code's image processor has limits of its own (min_pixels, max_pixels, also inside size), which its processor
# overwrites on every call with the image_* and video_* limits. Reading them would halve the released model's resolution.
_OVERWRITTEN_TYPE = "Ernie4_5_VLImageProcessor"
# Keys of transformers' native video processor.
_VIDEO_KEYS = {
    "fps": "video_fps",
    "min_frames": "video_min_frames",
    "max_frames": "video_max_frames",
    "num_frames": "video_target_frames",
    "draw_on_frames": "render_timestamp",
}


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Sizes in pixels of the resized picture (height x width); defaults are those of ERNIE-4.5-VL-28B-A3B.

    image_*_pixels, video_*_pixels: budget of one image and of one video frame.
    image_mean, image_std, rescale_factor: normalisation of the uint8 patches, done by the model: (x * rescale - mean) / std.
    video_fps: frames sampled per second, clipped to [video_min_frames, video_max_frames]; video_target_frames, if positive,
    fixes the count instead. frames_sample: each frame is the first ("leading") or the middle one of its equal span.
    render_timestamp: write the time of each video frame into its top left corner, on the frame's original size.
    """

    patch_size: int = 14
    merge_size: int = 2
    image_min_pixels: int = 4 * 28 * 28
    image_max_pixels: int = 6177 * 28 * 28
    video_min_pixels: int = 299 * 28 * 28
    video_max_pixels: int = 1196 * 28 * 28
    video_fps: float = 2.0
    video_min_frames: int = 16
    video_max_frames: int = 180
    video_target_frames: int = -1
    frames_sample: FramesSample = "leading"
    render_timestamp: bool = True
    image_mean: tuple[float, float, float] = _CLIP_MEAN
    image_std: tuple[float, float, float] = _CLIP_STD
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        for name in (
            "patch_size",
            "merge_size",
            "video_min_frames",
            "video_max_frames",
            "image_min_pixels",
            "video_min_pixels",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least 1; correct it")
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if high < max(low, self.factor**2):
                raise ConfigError(
                    f"{kind}_max_pixels ({high}) must be at least {kind}_min_pixels ({low}) and "
                    f"(patch_size * merge_size) ** 2 = {self.factor**2}; raise it"
                )
        if self.video_min_frames > self.video_max_frames:
            raise ConfigError(
                f"video_min_frames ({self.video_min_frames}) must be at most video_max_frames ({self.video_max_frames})"
            )
        if not self.video_fps > 0:
            raise ConfigError(f"video_fps ({self.video_fps!r}) must be above 0 frames per second; the default is 2")
        if self.frames_sample not in get_args(FramesSample):
            raise ConfigError(f"frames_sample ({self.frames_sample!r}) must be one of {get_args(FramesSample)}")

    @property
    def factor(self) -> int:
        """Pixels on a side of the square that becomes one token: patch_size * merge_size."""
        return self.patch_size * self.merge_size


def processor_config_from_json(image: dict[str, Any], video: dict[str, Any] | None = None) -> ProcessorConfig:
    """Read preprocessor files: ours, the remote code's, or transformers' native ones.

    image: content of `preprocessor_config.json`. video: content of the native `video_preprocessor_config.json`, if there is
    one; our own keys (video_fps, ...) stand in the first. ConfigError for an unknown key, and for a step turned off that the
    model needs.
    """
    values = _read(image, "image", "preprocessor_config.json")
    for key, value in _read(video or {}, "video", "video_preprocessor_config.json").items():
        values.setdefault(key, value)
    return ProcessorConfig(**values)


def _read(data: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    known = {field.name for field in fields(ProcessorConfig)}
    values: dict[str, Any] = {}
    unknown = []
    for key, value in data.items():
        if value is None or key in _IGNORED_KEYS or key in ("size", "min_pixels", "max_pixels"):
            continue
        if key in known:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif kind == "video" and key in _VIDEO_KEYS:
            values[_VIDEO_KEYS[key]] = value
        elif key not in _REQUIRED:
            unknown.append(key)
        elif value != _REQUIRED[key]:
            raise ConfigError(f"{key} ({value!r}) must be {_REQUIRED[key]!r} in {name}: the model was trained with it")
    if unknown:
        raise ConfigError(f"{name} has the unknown key {min(unknown)!r}; known are {', '.join(sorted(known))}; remove it")
    if data.get("image_processor_type") != _OVERWRITTEN_TYPE:
        for key, limit in _limits(data).items():
            values.setdefault(f"{kind}_{key}", limit)
    return values


def _limits(data: dict[str, Any]) -> dict[str, int]:
    """min_pixels and max_pixels in the spellings of transformers: inside size, as edges or by name, or beside it."""
    size = data.get("size") or {}
    found = {
        "min_pixels": size.get("shortest_edge") or size.get("min_pixels") or data.get("min_pixels"),
        "max_pixels": size.get("longest_edge") or size.get("max_pixels") or data.get("max_pixels"),
    }
    return {key: limit for key, limit in found.items() if limit}


def processor_config_to_json(config: ProcessorConfig) -> dict[str, Any]:
    """The file's content; also read with equal effect by transformers' native ERNIE image processor."""
    native = {
        "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
        "size": {"shortest_edge": config.image_min_pixels, "longest_edge": config.image_max_pixels},
        "resample": _BICUBIC,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    return native | {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
