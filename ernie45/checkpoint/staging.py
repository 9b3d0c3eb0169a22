"""A folder that appears whole or not at all: written beside its destination, flushed to disk, then renamed.

Knows nothing about what the files are. While it is written its name is `.NAME.incomplete-XXXX`; the writer holds a lock on it,
so a later run can tell what a killed run has left behind and removes it.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ernie45.config.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPY_BYTES = 8 << 20
_Buffer = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class StagedFolder:
    """Where to write. `needed_bytes`: what the whole folder takes; the message about a full disk says it."""

    path: Path
    needed_bytes: int

    def write(self, name: str, chunks: Iterable[_Buffer]) -> None:
        """Write and flush one file. StorageError if the disk is full or does not take it."""
        file = self.path / name
        try:
            with file.open("wb") as stream:
                for chunk in chunks:
                    write_all(stream.fileno(), chunk)
                os.fsync(stream.fileno())
        except OSError as error:
            raise _storage_error(file, self.needed_bytes, error) from error

    def copy(self, source: Path) -> None:
        """Copy one file under its own name."""
        self.write(source.name, _chunks(source))


@contextmanager
def staged_folder(destination: Path, *, needed_bytes: int, replaces: str | None = None) -> Iterator[StagedFolder]:
    """Write into the given folder; it gets the destination's name when the block ends, and is removed when the block fails.

    An empty folder at the destination is replaced; a folder with files only if it has one named `replaces`, which shows that
    it is of the kind that is being written. StorageError if something else is in the way, if the disk has fewer than
    `needed_bytes` free, or if it cannot be written; then everything is as it was.
    """
    destination = destination.expanduser().resolve()
    parent = destination.parent
    if not parent.is_dir():
        raise StorageError(f"destination ({destination}) cannot be made: {parent} is not a folder; create it first")
    _recover(destination)
    _check_free(destination, replaces)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise StorageError(_full(destination, needed_bytes, free))
    path, lock = _make(destination, needed_bytes)
    try:
        yield StagedFolder(path=path, needed_bytes=needed_bytes)
        _flush_folder(path)
        _publish(path, destination)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _check_free(destination: Path, replaces: str | None) -> None:
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if replaces is None:
        raise StorageError(f"destination ({destination}) exists and is not empty; choose another name or remove it first")
    if not (destination / replaces).is_file():
        raise StorageError(
            f"destination ({destination}) has no {replaces} and is not replaced; choose another name or remove it"
        )


def write_all(descriptor: int, chunk: _Buffer) -> None:
    """os.write until all is written; it takes at most 2 GB at a time."""
    view = memoryview(chunk).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _make(destination: Path, needed_bytes: int) -> tuple[Path, int]:
    """A new locked folder beside the destination."""
    while True:
        path = destination.with_name(f".{destination.name}.incomplete-{secrets.token_hex(4)}")
        try:
            path.mkdir()
            lock = os.open(path, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)  # another run takes it for a leftover: leave it to that run
            continue
        except OSError as error:
            raise _storage_error(path, needed_bytes, error) from error
        if path.is_dir():
            return path, lock
        os.close(lock)


def _publish(path: Path, destination: Path) -> None:
    """Rename. A folder with files in the way is first renamed, and put back by `_recover` if this run is killed in between."""
    aside = None
    try:
        if destination.exists() and any(destination.iterdir()):
            aside = destination.with_name(f".{destination.name}.replaced-{secrets.token_hex(4)}")
            destination.rename(aside)
        path.rename(destination)
        _flush_folder(destination.parent)
    except BaseException as error:
        if aside is not None and not destination.exists():
            aside.rename(destination)
        if isinstance(error, OSError):
            raise _storage_error(destination, 0, error) from error
        raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _recover(destination: Path) -> None:
    """Put back or remove what killed runs have left for this destination."""
    for aside in destination.parent.glob(f".{destination.name}.replaced-*"):
        if destination.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(destination)
    for leftover in destination.parent.glob(f".{destination.name}.incomplete-*"):
        with suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_COPY_BYTES):
            yield chunk


def _storage_error(file: Path, needed_bytes: int, error: OSError) -> StorageError:
    if error.errno in _FULL:
        return StorageError(_full(file, needed_bytes, shutil.disk_usage(file.parent).free))
    return StorageError(f"{file} cannot be written ({error.strerror or error}); choose a folder that can be written")


def _full(file: Path, needed_bytes: int, free: int) -> str:
    return (
        f"{file} cannot be written: the disk is full, {needed_bytes:,} bytes are needed in all and {free:,} are free; "
        "free some space or choose a folder on another disk"
    )
