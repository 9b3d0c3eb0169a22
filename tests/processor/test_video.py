"""Videos: which frames, what is written on them, and files that are damaged, huge or no videos."""

import io
import struct
import weakref
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ernie45.config.errors import MediaError
from ernie45.config.processor import ProcessorConfig
from ernie45.processor import video
from ernie45.processor.image import image_patches
from ernie45.processor.media import MediaLimits, Video, load_video
from ernie45.processor.video import draw_timestamp, frame_indices, sniff_container, spread, timestamp_text, video_patches

FONT = "ernie45/assets/fonts/Roboto-Regular.ttf"
LIMITS = MediaLimits()


def level(index: int) -> int:
    return 20 + 4 * (index % 55)


def video_file(
    num_frames: int, *, rate: int = 10, form: str = "mp4", codec: str = "libx264", size=(64, 48), shade: Any = 0.0
) -> bytes:
    """Frames of one grey each, which tells their number; shade [H, W] brightens them unevenly."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.thread_count = 1
        for index in range(num_frames):
            grey = np.full((size[1], size[0]), level(index)) + 100 * shade
            pixels = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def clip() -> bytes:
    """50 frames, 10 a second, with B-frames: 5 seconds."""
    return video_file(50)


def plain(**options) -> ProcessorConfig:
    return ProcessorConfig(
        **{"video_min_pixels": 784, "video_max_pixels": 6 * 784, "render_timestamp": False, "video_min_frames": 1, **options}
    )


def seen(video: Video) -> list[int]:
    """Which frames these are, by their grey level."""
    levels = [float(np.asarray(frame).mean()) for frame in video.frames]
    return [round((value - 20) / 4) for value in levels]


# Which frames


@pytest.mark.parametrize(
    ("num_frames", "count", "mode", "expected"),
    [
        (100, 4, "leading", [0, 25, 50, 75]),
        (100, 4, "middle", [12, 37, 62, 87]),
        (10, 3, "leading", [0, 3, 6]),
        (10, 3, "middle", [1, 4, 7]),
        (5, 5, "leading", [0, 1, 2, 3, 4]),
        (5, 5, "middle", [0, 1, 2, 3, 4]),
        (1, 1, "middle", [0]),
    ],
)
def test_one_frame_of_each_span(num_frames, count, mode, expected):
    assert spread(num_frames, count, mode) == expected


@pytest.mark.parametrize(
    ("num_frames", "duration", "options", "expected"),
    [
        (300, 10.0, {}, 20),  # two a second
        (60, 2.0, {}, 16),  # at least 16
        (9000, 300.0, {}, 180),  # at most 180
        (7, 0.3, {}, 7),  # never more than there are
        (300, 10.99, {}, 21),
        (300, 10.0, {"video_fps": 1.0}, 16),
        (300, 10.0, {"video_target_frames": 5}, 5),
        (3, 10.0, {"video_target_frames": 5}, 3),
    ],
)
def test_how_many_frames(num_frames, duration, options, expected):
    indices = frame_indices(num_frames, duration, ProcessorConfig(**options))
    assert len(indices) == expected
    assert indices == sorted(set(indices))


@given(num_frames=st.integers(1, 5000), data=st.data(), mode=st.sampled_from(["leading", "middle"]))
def test_spans_are_in_order_and_inside(num_frames, data, mode):
    count = data.draw(st.integers(1, num_frames))
    indices = spread(num_frames, count, mode)
    assert len(set(indices)) == count
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < num_frames


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("leading", [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]), ("middle", [2, 7, 12, 17, 22, 27, 32, 37, 42, 47])],
)
def test_a_file_is_sampled_twice_a_second(clip, mode, expected):
    video = load_video(clip, plain(frames_sample=mode))
    assert seen(video) == expected
    assert video.timestamps == pytest.approx([index / 10 for index in expected])


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", "mpeg4"), ("mov", "libx264"), ("matroska", "ffv1"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("gif", "gif"),
     ("mpegts", "mpeg2video"), ("flv", "flv"), ("mpeg", "mpeg2video")],
)  # fmt: skip
def test_containers(form, codec):
    data = video_file(30, rate=25, form=form, codec=codec)
    video = load_video(data, plain(video_target_frames=4))
    assert len(video.frames) == 4
    np.testing.assert_allclose(seen(video), [0, 7, 15, 22], atol=9 if form == "gif" else 1)


def test_patches_of_a_file_equal_those_of_its_frames_as_images(clip):
    config = plain(video_target_frames=4)
    patches, grid = video_patches(clip, config, LIMITS)
    assert grid == (4, 4, 4)
    frames = load_video(clip, config).frames
    same = ProcessorConfig(image_min_pixels=784, image_max_pixels=6 * 784)
    expected = np.concatenate([image_patches(frame, same).patches_PC for frame in frames])
    np.testing.assert_array_equal(patches, expected)
    np.testing.assert_array_equal(video_patches(load_video(clip, config), config, LIMITS).patches_PC, expected)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_odd_last_frame_is_doubled(clip, count):
    patches, grid = video_patches(clip, plain(video_target_frames=count), LIMITS)
    assert grid[0] == count + 1
    frames = patches.reshape(grid[0], -1)
    np.testing.assert_array_equal(frames[-1], frames[-2])


def test_frames_are_given_out_one_by_one(clip, monkeypatch):
    """No more than one frame of the original size lives at a time."""
    alive, most = [], 0
    original = video.draw_timestamp

    def counted(image, seconds):
        nonlocal most
        alive[:] = [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(image))
        most = max(most, len(alive))
        return original(image, seconds)

    monkeypatch.setattr(video, "draw_timestamp", counted)
    video_patches(clip, plain(render_timestamp=True, video_target_frames=20), LIMITS)
    assert most <= 2


# Timestamps


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "time: 00:00:00.00"),
        (1.5, "time: 00:00:01.50"),
        (59.994, "time: 00:00:59.99"),
        (61.25, "time: 00:01:01.25"),
        (3600 + 62, "time: 01:01:02.00"),
        (360000, "time: 100:00:00.00"),
    ],
)
def test_timestamp_text(seconds, text):
    assert timestamp_text(seconds) == text


def test_the_timestamp_is_black_roboto_with_a_white_rim_at_a_tenth_of_the_shorter_side():
    frame = Image.new("RGB", (640, 360), (90, 120, 30))
    expected = frame.copy()
    ImageDraw.Draw(expected).text(
        (0, 0),
        "time: 00:00:02.50",
        font=ImageFont.truetype(FONT, 36),
        fill=(0, 0, 0),
        stroke_width=3,
        stroke_fill=(255, 255, 255),
    )
    drawn = draw_timestamp(frame, 2.5)
    np.testing.assert_array_equal(drawn, expected)
    assert frame.getextrema() == ((90, 90), (120, 120), (30, 30)), "the frame that was passed in stays as it was"


def test_the_timestamp_is_written_before_resizing(clip):
    config = plain(render_timestamp=True, video_target_frames=2, video_max_pixels=24 * 784, video_min_pixels=20 * 784)
    video = load_video(clip, config)
    stamped = [draw_timestamp(frame, seconds) for frame, seconds in zip(video.frames, video.timestamps, strict=True)]
    expected = video_patches(
        Video(frames=stamped, timestamps=[0, 0]), plain(**{**vars(config), "render_timestamp": False}), LIMITS
    )
    np.testing.assert_array_equal(video_patches(clip, config, LIMITS).patches_PC, expected.patches_PC)


def test_a_frame_too_small_for_letters_stays_bare():
    frame = Image.new("RGB", (9, 200), (1, 2, 3))
    assert draw_timestamp(frame, 1.0).getextrema() == frame.getextrema()


def test_a_phones_rotation_is_applied():
    """A display matrix that says: show it turned by a quarter, as phones write it for upright films."""
    clip = video_file(2, shade=np.linspace(0, 1, 48)[:, None] * np.linspace(0, 1, 64)[None, :])
    for angle, matrix, turns in ((90, (0, 1, -1, 0), -1), (270, (0, -1, 1, 0), 1)):
        data = bytearray(clip)
        start = data.index(b"tkhd") + 4 + 40
        a, b, c, d = (value * 0x10000 for value in matrix)
        data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
        config = plain(video_target_frames=1)
        turned = np.asarray(load_video(bytes(data), config).frames[0])
        np.testing.assert_array_equal(
            turned, np.rot90(np.asarray(load_video(clip, config).frames[0]), turns), err_msg=f"{angle}"
        )


# What can be wrong


def test_a_text_is_no_video():
    with pytest.raises(MediaError, match="not a video in a known container"):
        load_video(b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", plain())


def test_playlists_are_never_guessed():
    """A list of other files behind the first bytes of a known container is read as that container, and fails."""
    assert sniff_container(b"ffconcat version 1.0\nfile /etc/passwd\n") is None
    with pytest.raises(MediaError, match=r"damaged|no frames|no video"):
        load_video(b"FLV\x01#EXTM3U\nfile:///etc/passwd\n" * 20, plain())


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("fast_start", [False, True])
def test_a_truncated_file(keep, fast_start, tmp_path):
    file = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(file, "w", format="mp4", options={"movflags": "faststart"} if fast_start else {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for _ in range(40):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = file.read_bytes()
    assert len(load_video(data, plain(video_target_frames=4)).frames) == 4
    with pytest.raises(MediaError, match=r"damaged|cut off"):
        load_video(data[: int(len(data) * keep)], plain(video_target_frames=4))


def test_limits_of_frames_size_and_bytes(clip):
    with pytest.raises(MediaError, match=r"has 50 frames, over the limit of 49"):
        load_video(clip, plain(), MediaLimits(max_video_frames=49))
    with pytest.raises(MediaError, match=r"frames of 64x48, over the limit of 3000 pixels"):
        load_video(clip, plain(), MediaLimits(max_frame_pixels=3000))
    with pytest.raises(MediaError, match="larger than the limit of 100 bytes"):
        load_video(clip, plain(), MediaLimits(max_video_bytes=100))


def test_pictures_in_an_unknown_form():
    """Was an AttributeError, and so a 500: libav has no decoder then."""
    data = video_file(4)
    entry = data.index(b"avc1", data.index(b"stsd"))
    with pytest.raises(MediaError, match="form that is not known"):
        load_video(data[:entry] + b"zzzz" + data[entry + 4 :], plain())


def test_sound_alone_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video track"):
        load_video(file.getvalue(), plain())


@pytest.mark.parametrize(("frames", "timestamps"), [([], []), ([Image.new("RGB", (8, 8))], [0.0, 1.0])])
def test_a_video_needs_a_timestamp_for_each_frame(frames, timestamps):
    with pytest.raises(MediaError, match="one for each"):
        Video(frames=frames, timestamps=timestamps)


def test_frames_of_the_wrong_kind_and_of_two_sizes():
    with pytest.raises(MediaError, match="uint8"):
        video_patches(Video(frames=[np.zeros((8, 8, 3))], timestamps=[0.0]), plain(), LIMITS)
    two = [Image.new("RGB", (40, 40)), Image.new("RGB", (60, 40))]
    with pytest.raises(MediaError, match="changes its size"):
        video_patches(Video(frames=two, timestamps=[0.0, 1.0]), plain(), LIMITS)
