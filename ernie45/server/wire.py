"""Messages as frames: the type's name, a msgpack body, then every NumPy array as a frame of its own, without a copy.

Knows nothing about sockets or about what the messages mean. No pickle: only the types that a decoder was given come out.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Frame = bytes | memoryview

# Kinds of numbers that a message may carry; anything else (objects, dates, text) is refused.
_KINDS = frozenset("biuf")

# What a body that is wrong makes msgspec and our own types raise. A bad UTF-8 string is a plain ValueError there.
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, AssertionError, RecursionError)


class WireError(ValueError):
    """A message cannot be read. request_id: whose it was, if that much could be read."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


def encode(message: Any) -> list[Frame]:
    """The frames of a message, a dataclass. Arrays are not copied: leave them as they are until the frames are sent."""
    arrays: list[Frame] = []

    def hook(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            arrays.append(array.reshape(-1).view(np.uint8).data)
            return (len(arrays) - 1, array.dtype.str, array.shape)
        if isinstance(value, Path):
            return str(value)
        raise NotImplementedError(f"{type(value).__name__} cannot be sent")

    body = msgspec.msgpack.encode(message, enc_hook=hook)
    return [type(message).__name__.encode(), body, *arrays]


class MessageDecoder:
    """Reads messages of the given types. For one thread."""

    def __init__(self, *types: type) -> None:
        self._decoders = {kind.__name__.encode(): msgspec.msgpack.Decoder(kind, dec_hook=self._hook) for kind in types}
        self._arrays: Sequence[Frame] = ()

    def decode(self, frames: Sequence[Frame]) -> Any:
        """The message. WireError for an unknown type and for a body that is not one; nothing else is raised.

        Arrays are read-only views of the frames.
        """
        if len(frames) < 2:
            raise WireError(f"a message has at least two frames, not {len(frames)}")
        tag = bytes(frames[0])
        decoder = self._decoders.get(tag)
        if decoder is None:
            raise WireError(f"messages of type {tag[:40]!r} are not known here")
        self._arrays = frames[2:]
        try:
            return decoder.decode(frames[1])
        except _UNREADABLE as error:
            raise WireError(f"a message of type {tag.decode()} cannot be read: {error}", _request_id(frames[1])) from error
        finally:
            self._arrays = ()

    def _hook(self, kind: type, value: Any) -> Any:
        if kind is Path:
            return Path(value)
        assert kind is np.ndarray, kind
        index, name, shape = value
        dtype = np.dtype(name)
        if dtype.kind not in _KINDS or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"an array of {name} {shape} cannot be received")
        if not 0 <= index < len(self._arrays):
            raise ValueError(f"array {index} is not among {len(self._arrays)} frames")
        buffer = memoryview(self._arrays[index])
        if buffer.nbytes != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of {name} {shape} cannot be in a frame of {buffer.nbytes} bytes")
        return np.frombuffer(buffer.toreadonly(), dtype).reshape(shape) if buffer.nbytes else np.empty(shape, dtype)


def _request_id(body: Frame) -> str | None:
    """Whose message it was, from a body that is wrong elsewhere."""
    try:
        raw = msgspec.msgpack.decode(body)
    except _UNREADABLE:
        return None
    found = raw.get("request_id") if isinstance(raw, dict) else None
    return found if isinstance(found, str) else None
