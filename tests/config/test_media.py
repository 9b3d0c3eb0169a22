"""What may be said about pictures at start and in a request: names, types, ranges, ceilings."""

import re

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.media import limit_per_prompt, override_processor
from ernie45.config.processor import ProcessorConfig


def test_numbers_change_by_fastdeploys_names():
    kwargs = {
        "image_min_pixels": 784, "image_max_pixels": 7840, "video_min_pixels": 784, "video_max_pixels": 1568,
        "video_target_frames": 8, "video_frames_sample": "middle", "video_min_frames": 2, "video_max_frames": 9,
        "video_fps": 3, "spatial_conv_size": 2, "temporal_conv_size": 2,
    }  # fmt: skip
    config = override_processor(ProcessorConfig(), kwargs)
    assert (config.image_min_pixels, config.image_max_pixels) == (784, 7840)
    assert (config.video_min_pixels, config.video_max_pixels) == (784, 1568)
    assert (config.video_target_frames, config.frames_sample, config.video_fps) == (8, "middle", 3.0)
    assert (config.video_min_frames, config.video_max_frames) == (2, 9)
    assert override_processor(ProcessorConfig(), {}) == ProcessorConfig()


@pytest.mark.parametrize(
    ("kwargs", "rule"),
    [
        ({"video_fsp": 1}, "unknown key 'video_fsp'.*did you mean 'video_fps'"),
        ({"image_max_pixels": "9"}, r"mm_processor_kwargs.image_max_pixels ('9') must be a whole number"),
        ({"image_max_pixels": True}, "must be a whole number"),
        ({"image_max_pixels": 9.0}, "must be a whole number"),
        ({"video_fps": "2"}, "must be a number"),
        ({"video_fps": float("nan")}, "video_fps"),
        ({"video_fps": 0}, "above 0"),
        ({"video_frames_sample": 3}, "must be a text"),
        ({"video_frames_sample": "last"}, "must be one of"),
        ({"spatial_conv_size": 4}, "must be 2: the model's weights fix it"),
        ({"temporal_conv_size": 1}, "must be 2: the model's weights fix it"),
        ({"image_min_pixels": 0}, "at least 1"),
        ({"image_min_pixels": 10**9}, "image_max_pixels"),
        ({"video_min_frames": 200}, "at most video_max_frames"),
        ([], "must be an object"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, rule):
    with pytest.raises(ConfigError, match=rule.replace("('9')", re.escape("('9')"))):
        override_processor(ProcessorConfig(), kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{"image_max_pixels": 10**8}, {"video_target_frames": 181}, {"video_max_frames": 181}, {"video_max_pixels": 10**7}],
)
def test_a_request_may_not_ask_for_more_than_the_server_is_set_to(kwargs):
    override_processor(ProcessorConfig(), kwargs)
    with pytest.raises(ConfigError, match="must be at most .*, what the server is set to"):
        override_processor(ProcessorConfig(), kwargs, capped=True)


def test_a_request_may_ask_for_less():
    config = override_processor(ProcessorConfig(), {"image_max_pixels": 784 * 100, "video_target_frames": 4}, capped=True)
    assert (config.image_max_pixels, config.video_target_frames) == (78400, 4)


def test_limits_per_prompt_lie_over_the_defaults():
    assert limit_per_prompt({}) == {"image": 100, "video": 10}
    assert limit_per_prompt({"image": 1, "video": 0, "audio": 1}) == {"image": 1, "video": 0}


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"images": 1}, "unknown kind 'images'.*did you mean 'image'"),
        ({"image": -1}, "at least 0"),
        ({"image": 1.5}, "at least 0"),
        ({"image": True}, "at least 0"),
        (5, "must be an object"),
    ],
)
def test_limits_that_cannot_be(value, rule):
    with pytest.raises(ConfigError, match=rule):
        limit_per_prompt(value)
