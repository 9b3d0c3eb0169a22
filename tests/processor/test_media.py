"""Opening what users send as images: every place it can lie, and everything that can be wrong with it."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ernie45.config.errors import ConfigError, MediaError
from ernie45.processor.image import to_rgb
from ernie45.processor.media import MediaLimits, load_image

FIELD = "messages[0].content[1].image_url"


def picture(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PNG = encoded(picture(), "PNG")
JPEG = encoded(picture(200, 200), "JPEG")


def test_the_same_picture_from_every_place(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    payload = base64.b64encode(PNG).decode()
    sources = [picture(), PNG, bytearray(PNG), path, str(path), f"data:image/png;base64,{payload}", path.as_uri()]
    limits = MediaLimits(file_folders=(tmp_path,))
    for source in sources:
        np.testing.assert_array_equal(load_image(source, limits), picture())


def test_the_content_decides_not_the_name_or_the_declared_type(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(JPEG)
    assert load_image(path).size == (200, 200)
    assert load_image("data:image/webp;base64," + base64.b64encode(JPEG).decode()).size == (200, 200)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO"])
def test_formats(form):
    assert to_rgb(load_image(encoded(picture(48, 48), form))).size == (48, 48)


def test_cmyk_becomes_rgb():
    image = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert image.mode == "CMYK"
    np.testing.assert_allclose(np.asarray(to_rgb(image))[4, 4], [0, 255, 255], atol=10)


def test_sixteen_bits_become_eight():
    values = np.full((8, 8), 40000, dtype=np.uint16)
    image = load_image(encoded(Image.fromarray(values), "PNG"))
    assert to_rgb(image).getpixel((3, 3)) == (156, 156, 156)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert to_rgb(load_image(data)).getpixel((2, 2)) == (255, 0, 0)


def test_a_file_is_turned_upright_and_a_pil_image_is_left_alone():
    image = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    turned = load_image(encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))
    lying = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))
    assert load_image(lying).size == (40, 30)


@pytest.mark.parametrize("cut", [20, 300, len(JPEG) // 2, len(JPEG) - 200])
def test_a_truncated_jpeg(cut):
    with pytest.raises(MediaError, match=rf"{cut} bytes.*(damaged or cut-off|cut off or damaged)"):
        load_image(JPEG[:cut], field="image")


@pytest.mark.parametrize("cut", [10, 40, len(PNG) // 2])
def test_a_truncated_png(cut):
    with pytest.raises(MediaError, match=r"damaged or cut-off|cut off or damaged"):
        load_image(PNG[:cut])


def png_of_size(width: int, height: int) -> bytes:
    """A well-formed header with almost nothing behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (50000, 50000), (1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    with pytest.raises(MediaError, match="limit of 80000000 pixels"):
        load_image(png_of_size(*size))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels(size):
    with pytest.raises(MediaError):
        load_image(png_of_size(*size))
    with pytest.raises(MediaError, match="no pixels"):
        load_image(Image.new("RGB", size))


def test_no_bytes(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    for source in (b"", empty, "data:image/png;base64,"):
        with pytest.raises(MediaError, match="has no bytes"):
            load_image(source)


def test_a_text_named_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("hello, this is a text\n" * 50)
    with pytest.raises(MediaError, match=r"image \(.*notes.png\) is not an image in a known format"):
        load_image(path)


def test_formats_that_start_other_programs_are_not_tried():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(MediaError, match="known format"):
        load_image(postscript)


def test_a_file_over_the_size_limit(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(PNG)
    limits = MediaLimits(max_image_bytes=len(PNG) - 1)
    for source in (PNG, path, "data:image/png;base64," + base64.b64encode(PNG).decode()):
        with pytest.raises(MediaError, match=f"larger than the limit of {len(PNG) - 1} bytes"):
            load_image(source, limits)


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:", "data:image/png;base64,a", "data:image/png;base64,$$$$"])
def test_bad_data_urls(url):
    with pytest.raises(MediaError, match=r"messages\[0\]\.content\[1\]\.image_url"):
        load_image(url, field=FIELD)


def test_an_error_does_not_repeat_a_long_address():
    with pytest.raises(MediaError) as error:
        load_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_files_are_off_unless_their_folder_is_allowed(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a picture.png").write_bytes(PNG)
    (inside / "link.png").symlink_to(outside / "a picture.png")
    limits = MediaLimits(file_folders=(inside,))
    assert load_image((inside / "a picture.png").as_uri(), limits).size == (40, 30)
    assert load_image("file://localhost" + (inside / "a picture.png").as_uri()[7:], limits).size == (40, 30)
    refused = [outside / "a picture.png", inside / ".." / "out" / "a picture.png", inside / "link.png", Path("/etc/passwd")]
    for path in refused:
        with pytest.raises(MediaError, match="not in an allowed folder"):
            load_image(f"file://{path}", limits)
    with pytest.raises(MediaError, match="none is allowed"):
        load_image((inside / "a picture.png").as_uri())
    with pytest.raises(MediaError, match="not in an allowed folder"):
        load_image(f"file://elsewhere{inside}/a picture.png", limits)


@pytest.mark.parametrize("source", [None, 3, ["a"], {"url": "x"}])
def test_what_is_no_source(source):
    with pytest.raises(MediaError, match="must be a picture, bytes, a path or an address"):
        load_image(source)


@pytest.mark.parametrize("source", ["/nowhere/at/all.png", "/dev/zero", "/tmp", "a\0b.png", "x" * 5000])
def test_paths_that_are_no_files(source):
    with pytest.raises(MediaError, match="check the path"):
        load_image(source)


def test_a_limit_above_pils_own_is_refused():
    with pytest.raises(ConfigError, match="PIL's own limit"):
        MediaLimits(max_image_pixels=10**9)


SEEDS = [encoded(picture(20, 20), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "AVIF")]


@settings(max_examples=400, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_damage_gives_a_picture_or_one_clear_error(seed, data):
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        outcome = to_rgb(load_image(bytes(damaged))).mode
    except MediaError as error:
        outcome = str(error)
    assert outcome == "RGB" or (outcome.startswith("image ") and "\n" not in outcome)


def test_what_is_no_file_leaves_nothing_open(tmp_path: Path):
    """A folder was opened before it was found to be none: each such address cost the server a file descriptor."""
    os.mkfifo(tmp_path / "pipe")
    before = psutil.Process().num_fds()
    for _ in range(5):
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
            with pytest.raises(MediaError, match="cannot be read|is not a file"):
                load_image(path)
    assert psutil.Process().num_fds() == before
