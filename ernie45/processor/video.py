"""From a video file to uint8 patches: which frames, their timestamps written on them, resized and cut up one by one.

Knows nothing about text, positions or where files come from.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageDraw, ImageFont

from ernie45.config.errors import MediaError, MediaFormatError, MediaSizeError
from ernie45.config.processor import FramesSample, ProcessorConfig
from ernie45.processor.image import Patches, patchify, resize, to_rgb
from ernie45.processor.source import MediaLimits, describe, read_bytes

_TIMESTAMP_RATE = 0.1
_STROKE_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class Video:
    """Frames that are already chosen. frames: PIL images or uint8 [H, W, 3] arrays of one size; timestamps in seconds."""

    frames: Sequence[Any]
    timestamps: Sequence[float]

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.timestamps):
            raise MediaError(
                f"video has {len(self.frames)} frames and {len(self.timestamps)} timestamps; give one for each, at least one"
            )


class TimedFrame(NamedTuple):
    """One frame, upright RGB, and its time in seconds."""

    image: Image.Image
    timestamp: float


def frame_indices(num_frames: int, duration: float, config: ProcessorConfig) -> list[int]:
    """Which of the video's frames are used, in order.

    num_frames: of the whole video; duration in seconds. video_target_frames of them if that is set, else duration * video_fps
    clipped to [video_min_frames, video_max_frames]; never more than there are.
    """
    count = config.video_target_frames
    if count <= 0:
        count = min(max(int(duration * config.video_fps), config.video_min_frames), config.video_max_frames)
    return spread(num_frames, min(count, num_frames), config.frames_sample)


def spread(num_frames: int, count: int, frames_sample: FramesSample) -> list[int]:
    """One frame of each of `count` equal spans: its first ("leading") or the one in its middle ("middle")."""
    edges = np.linspace(0, num_frames, count + 1).astype(int)
    chosen = edges[:-1] if frames_sample == "leading" else (edges[:-1] + edges[1:] - 1) // 2
    return chosen.tolist()


def timestamp_text(seconds: float) -> str:
    """What is written on a frame: `time: HH:MM:SS.ss`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"time: {hours:02d}:{minutes:02d}:{seconds:05.2f}"


def draw_timestamp(image: Image.Image, seconds: float) -> Image.Image:
    """A copy with the time in its top left corner, black with a white rim, a tenth of the shorter side high.

    On a frame under 10 pixels wide or high there is no room for a letter, and none is drawn.
    """
    image = image.copy()
    size = int(min(image.size) * _TIMESTAMP_RATE)
    if size >= 1:
        stroke = int(size * _STROKE_RATE)
        ImageDraw.Draw(image).text(
            (0, 0), timestamp_text(seconds), font=_font(size), fill=(0, 0, 0), stroke_width=stroke, stroke_fill=(255, 255, 255)
        )
    return image


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    data = (files("ernie45") / "assets" / "fonts" / "Roboto-Regular.ttf").read_bytes()
    return ImageFont.truetype(io.BytesIO(data), size)


def load_video(
    source: Any, config: ProcessorConfig | None = None, limits: MediaLimits | None = None, field: str = "video"
) -> Video:
    """The sampled frames of a video at their original size, without timestamps drawn. All of them are held in memory."""
    frames = list(read_frames(source, config or ProcessorConfig(), limits or MediaLimits(), field))
    return Video(frames=[frame.image for frame in frames], timestamps=[frame.timestamp for frame in frames])


def video_patches(
    source: Any,
    config: ProcessorConfig,
    limits: MediaLimits,
    field: str = "video",
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Patches:
    """Patches of a video: a `Video`, bytes, a path or an address. Its grid has an even number of frames (an odd last one is
    doubled). One frame at a time is held at its original size. is_unwanted: asked now and then; once true, a MediaError ends
    the work."""
    given = isinstance(source, Video)
    frames = _frames_of(source, field) if given else read_frames(source, config, limits, field, is_unwanted)
    rows: list[np.ndarray] = []
    height, width = 0, 0
    first_size = None
    for image, timestamp in frames:
        first_size = first_size or image.size
        if image.size != first_size:
            raise MediaError(f"{field} changes its size from {first_size} to {image.size}; all frames must have one size")
        if config.render_timestamp:
            image = draw_timestamp(image, timestamp)
        resized = resize(image, config, "video", field)
        height, width = (resized.height // config.patch_size, resized.width // config.patch_size)
        rows.append(patchify(np.asarray(resized), config.patch_size, config.merge_size))
    if len(rows) % 2:
        rows.append(rows[-1])
    return Patches(np.concatenate(rows), (len(rows), height, width))


def _frames_of(video: Video, field: str) -> Iterator[TimedFrame]:
    for frame, timestamp in zip(video.frames, video.timestamps, strict=True):
        if not isinstance(frame, Image.Image):
            array = np.asarray(frame)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                raise MediaError(
                    f"{field} has a frame of type {array.dtype} {list(array.shape)}; give uint8 [height, width, 3]"
                )
            frame = Image.fromarray(array)
        yield TimedFrame(to_rgb(frame), float(timestamp))


def read_frames(
    source: Any,
    config: ProcessorConfig,
    limits: MediaLimits,
    field: str = "video",
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[TimedFrame]:
    """The sampled frames of a video file, decoded in order, each given out as soon as it is there."""
    data = read_bytes(source, limits.max_video_bytes, limits, field)
    container_format = check_video_start(data, data, field)
    try:
        num_frames, rate = _measure(data, container_format, limits, field)
        duration = float(num_frames / rate)
        wanted = [(index, index * duration / num_frames) for index in frame_indices(num_frames, duration, config)]
        yield from _decode(_open(data, container_format, limits, field), wanted, limits, field, is_unwanted)
    except (FFmpegError, ValueError, IndexError, ArithmeticError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{field} is a damaged video: {error}; send the whole file") from error


def check_video_start(data: bytes, source: Any, field: str) -> str:
    """FFmpeg's name of the container that begins like this. MediaFormatError if it is none of those we read."""
    container_format = sniff_container(data)
    if container_format is None:
        raise MediaFormatError(
            f"{field} ({describe(source)}) is not a video in a known container (MP4, MOV, Matroska, WebM, AVI, GIF, MPEG, FLV, "
            "Ogg); convert it"
        )
    return container_format


def sniff_container(data: bytes) -> str | None:
    """FFmpeg's name of the container, by its first bytes; None if it is none of those we read.

    The demuxer is named, never guessed by FFmpeg: its playlist formats (HLS, concat) open other files and addresses.
    """
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if len(data) > 376 and data[0] == data[188] == data[376] == 0x47:
        return "mpegts"
    starts = {b"\x1a\x45\xdf\xa3": "matroska", b"\x00\x00\x01\xba": "mpeg", b"FLV\x01": "flv", b"OggS": "ogg"}
    return starts.get(data[:4])


def _open(data: bytes, container_format: str, limits: MediaLimits, field: str) -> tuple[Any, Any]:
    container = av.open(io.BytesIO(data), format=container_format, metadata_errors="replace")
    if not container.streams.video:
        container.close()
        raise MediaError(f"{field} has no video track; send a file with pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise MediaError(f"{field} has pictures in a form that is not known here; convert it to H.264, or send the whole file")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_frame_pixels:
        container.close()
        raise MediaSizeError(
            f"{field} has frames of {width}x{height}, over the limit of {limits.max_frame_pixels} pixels; scale it down"
        )
    stream.codec_context.options = {"max_pixels": str(limits.max_frame_pixels)}  # the size may also change on the way
    stream.thread_type = "AUTO"
    return container, stream


def _measure(data: bytes, container_format: str, limits: MediaLimits, field: str) -> tuple[int, Fraction]:
    """Number of frames and frames per second. Packets are counted, not decoded: headers are often missing or wrong."""
    container, stream = _open(data, container_format, limits, field)
    with container:
        num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        rate = stream.average_rate or stream.guessed_rate
        announced = stream.frames
    if num_frames > limits.max_video_frames:
        raise MediaSizeError(
            f"{field} has {num_frames} frames, over the limit of {limits.max_video_frames}; send a shorter part"
        )
    if not num_frames:
        raise MediaError(f"{field} has no frames; send a whole video")
    if announced > num_frames + max(1, announced // 100):
        raise MediaError(f"{field} is cut off: it announces {announced} frames and has {num_frames}; send the whole file")
    return num_frames, Fraction(rate) if rate else Fraction(24)


def _decode(
    opened: tuple[Any, Any],
    wanted: Sequence[tuple[int, float]],
    limits: MediaLimits,
    field: str,
    is_unwanted: Callable[[], bool],
) -> Iterator[TimedFrame]:
    """Decode up to the last wanted (index, time). A few packets at the end may hold no picture: the last stands for them."""
    end = time.monotonic() + limits.max_decode_seconds
    container, stream = opened
    position, number, frame = 0, -1, None
    with container:
        for number, frame in enumerate(container.decode(stream)):
            if number == wanted[position][0]:
                yield TimedFrame(_upright(frame), wanted[position][1])
                position += 1
            if position == len(wanted):
                return
            if is_unwanted():
                raise MediaError(f"{field} is not wanted any more; its request has ended")
            if time.monotonic() > end:
                raise MediaSizeError(
                    f"{field} took longer to decode than the limit of {limits.max_decode_seconds:g} s ({number + 1} frames of "
                    f"{frame.width}x{frame.height}); send a shorter or smaller one"
                )
        last = wanted[-1][0]
        if frame is None or last - number > max(2, last // 20):
            raise MediaError(f"{field} is damaged: only {number + 1} of its frames can be decoded; send the whole file")
        for _, timestamp in wanted[position:]:
            yield TimedFrame(_upright(frame), timestamp)


def _upright(frame: Any) -> Image.Image:
    """RGB, turned as the container's display matrix says (in quarter turns), as phones record it."""
    pixels_HWC = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels_HWC, quarter_turns)))
