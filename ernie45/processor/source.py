"""Gets the bytes of images and videos from where users keep them: paths, data URLs, http, allowed folders.

Knows nothing about what the bytes mean.
"""

import base64
import binascii
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ernie45.config.errors import ConfigError, MediaAccessError, MediaError, MediaSizeError
from ernie45.processor.addresses import AddressRules
from ernie45.processor.fetch import FetchLimits, fetch, shorten

URL_SCHEMES = ("http", "https", "data", "file")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What users may send.

    max_image_bytes, max_video_bytes: size of the file as sent. max_image_pixels, max_frame_pixels: width x height as the
    header says, checked before anything is decoded. max_video_frames: frames of the whole video, all of which are decoded.
    max_decode_seconds: of one video; looked at between frames. connect_seconds to max_bytes_in_flight: of downloads, see
    `fetch.FetchLimits`. file_folders: folders whose files may be named by file:// addresses; none by default.
    """

    max_image_bytes: int = 64 * 2**20
    max_video_bytes: int = 1024 * 2**20
    max_image_pixels: int = 80_000_000
    max_frame_pixels: int = 36_000_000
    max_video_frames: int = 250_000
    max_decode_seconds: float = 120.0
    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    max_redirects: int = 3
    allow_private_addresses: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 64
    max_connections_per_host: int = 8
    max_bytes_in_flight: int = 2**30
    file_folders: tuple[Path, ...] = field(default=())

    def __post_init__(self) -> None:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and self.max_image_pixels > limit:
            raise ConfigError(f"max_image_pixels ({self.max_image_pixels}) must be at most PIL's own limit ({limit}); lower it")

        AddressRules(allowed=self.allowed_hosts)  # checks the entries

    @property
    def of_fetch(self) -> FetchLimits:
        """Those of downloads."""
        return FetchLimits(
            connect_seconds=self.connect_seconds,
            total_seconds=self.total_seconds,
            max_redirects=self.max_redirects,
            allow_private_addresses=self.allow_private_addresses,
            allowed_hosts=self.allowed_hosts,
            max_connections=self.max_connections,
            max_connections_per_host=self.max_connections_per_host,
            max_bytes_in_flight=self.max_bytes_in_flight,
        )


def read_bytes(source: Any, max_bytes: int, limits: MediaLimits, field: str) -> bytes:
    """The bytes of a path, an address or bytes. MediaError if there are none, too many, or the place is not allowed."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and is_url(source):
        data = _read_url(source, max_bytes, limits, field)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_file(Path(source), max_bytes, field)
    else:
        raise MediaError(f"{field} must be a picture, bytes, a path or an address, is {type(source).__name__}")
    if not data:
        raise MediaError(f"{field} ({describe(source)}) has no bytes; send a whole file")
    _check_bytes(len(data), max_bytes, source, field)
    return data


def is_url(source: str) -> bool:
    """Whether a string is an address (and not a path): it begins with a known scheme."""
    return source.partition(":")[0].lower() in URL_SCHEMES


def is_download(source: Any) -> bool:
    """Whether the bytes have to come over the network."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def _read_url(url: str, max_bytes: int, limits: MediaLimits, field: str) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _read_data_url(url, max_bytes, field)
    if scheme == "file":
        path = _allowed_path(url, limits, field)
        return _read_file(path, max_bytes, field, within=lambda: _allowed_path(url, limits, field) == path)
    return fetch(url, max_bytes, limits.of_fetch, field)


def _read_data_url(url: str, max_bytes: int, field: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise MediaError(f"{field} ({shorten(url)}) must have the form data:image/png;base64,...")
    if len(payload) > 2 * max_bytes:
        _check_bytes(len(payload) // 4 * 3, max_bytes, url, field)
    if "%" in payload:
        payload = unquote(payload)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{field} ({shorten(url)}) is not valid base64: {error}; encode the whole file again") from error


def _allowed_path(url: str, limits: MediaLimits, field: str) -> Path:
    """The file of a file:// address, links followed, if it lies in an allowed folder."""
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path)).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a ring of links, a zero byte, half an IPv6 address
        raise MediaError(f"{field} ({shorten(url)}) is not a valid address: {error}; correct it") from error
    if parts.netloc in ("", "localhost") and any(path.is_relative_to(Path(folder).resolve()) for folder in limits.file_folders):
        return path
    raise MediaAccessError(
        f"{field} ({shorten(url)}) is not in an allowed folder "
        f"({', '.join(map(str, limits.file_folders)) or 'none is allowed'}); send a data URL, or allow the folder at start"
    )


def _read_file(path: Path, max_bytes: int, field: str, within: Callable[[], bool] | None = None) -> bytes:
    """within: asked once the file is open, whether its path still leads to where it was allowed (links can be changed)."""
    try:
        # Not blocking, so that opening a pipe returns; pipes and devices, which have no end, are not read.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise MediaError(f"{field} ({path}) is not a file; check the path")
            if within is not None and not (within() and os.path.samestat(status, path.stat(follow_symlinks=False))):
                raise MediaAccessError(f"{field} ({path}) was moved while it was opened; send it again")
            _check_bytes(status.st_size, max_bytes, path, field)
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{field} ({shorten(path)}) cannot be read: {error}; check the path") from error


def _check_bytes(num_bytes: int, max_bytes: int, source: Any, field: str) -> None:
    if num_bytes > max_bytes:
        raise MediaSizeError(f"{field} ({describe(source)}) is larger than the limit of {max_bytes} bytes; send a smaller file")


def describe(source: Any) -> str:
    """A source for an error message: its address or path, or how many bytes it is."""
    return shorten(source) if isinstance(source, (str, os.PathLike)) else f"{len(source)} bytes"
