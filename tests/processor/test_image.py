"""Resizing, patch order and RGB conversion: against transformers' own image processor and Baidu's rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.ernie4_5_vl_moe import image_processing_pil_ernie4_5_vl_moe as native

from ernie45.config.errors import MediaError
from ernie45.config.processor import ProcessorConfig
from ernie45.processor.image import content_hash, image_patches, patchify, smart_resize, to_rgb


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.frombytes(mode, (width, height), np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8).tobytes())


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 9), large=st.booleans())
def test_patches_equal_transformers(width, height, seed, large):
    low, high = (3136, 6177 * 784) if large else (784, 24 * 784)
    config = ProcessorConfig(image_min_pixels=low, image_max_pixels=high)
    theirs = native.Ernie4_5_VLMoeImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    image = noise(width, height, seed=seed)
    if min(width, height) <= 14:  # their rounding has no lower bound: a side may become 0
        return
    expected = theirs(image, return_tensors="np")
    patches, grid = image_patches(image, config)
    assert patches.dtype == np.uint8
    assert expected["image_grid_thw"].tolist() == [list(grid)]
    channels = patches.reshape(len(patches), 3, -1) * config.rescale_factor
    normalised = (channels - np.array(config.image_mean)[:, None]) / np.array(config.image_std)[:, None]
    np.testing.assert_allclose(normalised.reshape(len(patches), -1), expected["pixel_values"], atol=2e-6)


@settings(max_examples=1000)
@given(
    height=st.integers(15, 5000),
    width=st.integers(15, 5000),
    limits=st.sampled_from([(3136, 6177 * 784), (299 * 784, 1196 * 784), (784, 24 * 784)]),
)
def test_size_equals_transformers_up_to_the_aspect_limit(height, width, limits):
    if max(height, width) > 200 * min(height, width):
        return
    low, high = limits
    expected = native.smart_resize(height, width, 28, low, high)
    if low <= expected[0] * expected[1] <= high:
        assert smart_resize(height, width, 28, low, high) == expected
    else:
        with pytest.raises(MediaError, match="less extreme"):
            smart_resize(height, width, 28, low, high)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1080, 1920), (1092, 1932)),
        ((3024, 4032), (1904, 2520)),
        ((42, 70), (56, 56)),  # 1.5 and 2.5 factors: halves round to even
        ((98, 126), (112, 112)),
        ((1, 10000), (28, 5600)),  # cut to 200 times the shorter side, which is at least one factor
        ((10000, 1), (5600, 28)),
        ((100, 30000), (112, 22400)),
        ((1, 1), (56, 56)),
    ],
)
def test_sizes(size, expected):
    height, width = size
    assert smart_resize(height, width, 28, 3136, 6177 * 784) == expected


@given(height=st.integers(1, 20000), width=st.integers(1, 20000))
def test_a_size_is_in_steps_and_within_limits(height, width):
    new_height, new_width = smart_resize(height, width, 28, 3136, 6177 * 784)
    assert new_height % 28 == new_width % 28 == 0
    assert 3136 <= new_height * new_width <= 6177 * 784


def test_patch_order_by_hand():
    """4x4 pixels, patch 1, merge 2: the four pixels of a 2x2 window follow each other."""
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    assert patchify(pixels, 1, 2)[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_a_patch_is_channel_major():
    pixels = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    assert patchify(pixels, 2, 1).tolist() == [[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]]


def baidu_rgb(image: Image.Image) -> Image.Image:
    """Paste on white through the alpha channel, as Baidu's loader does."""
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255))
    white.paste(layer, (0, 0), layer)
    return white.convert("RGB")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    image = noise(20, 10, mode)
    np.testing.assert_array_equal(to_rgb(image), baidu_rgb(image))


def test_a_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    assert list(np.asarray(to_rgb(image))[0].tolist()) == [[255, 255, 255], [0, 255, 0]]


def test_a_grey_with_a_transparent_level_is_laid_on_white():
    image = Image.new("L", (2, 1), 7)
    image.putpixel((1, 0), 9)
    image.info["transparency"] = 7
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 9]


def test_sixteen_bits_are_scaled_by_a_256th():
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], values // 256)
    np.testing.assert_array_equal(to_rgb(image), image.point(lambda i: i * (1 / 256)).convert("L").convert("RGB"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L", "HSV"])
def test_other_modes_are_converted_by_pil(mode):
    image = noise(9, 7, mode)
    np.testing.assert_array_equal(to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "P", "I", "F", "LAB", "RGBX", "PA", "La", "RGBa", "I;16B"])
def test_every_mode_of_pil_becomes_rgb(mode):
    image = Image.new(mode, (5, 4))
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).size == (5, 4)


def test_the_hash_tells_pictures_and_shapes_apart(config):
    image = noise(56, 28)
    assert content_hash(image_patches(image, config)) == content_hash(image_patches(image.copy(), config))
    other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    assert content_hash(image_patches(other, config)) != content_hash(image_patches(image, config))
    wide, tall = Image.new("RGB", (56, 28)), Image.new("RGB", (28, 56))
    assert content_hash(image_patches(wide, config)) != content_hash(image_patches(tall, config))
