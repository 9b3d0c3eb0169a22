"""The third tier of the prefix cache: pages as files in a folder, bounded in bytes, that outlive the process.

Knows nothing about tensors or about what a page holds. No fault of the disk reaches a request: what cannot be written is not
kept, and what cannot be read, or is not what was written, is dropped.

A file is a header, a checksum over everything else that says what the content is (the fingerprint of model, weights and page
layout, and the key), and the bytes. Files appear whole, by renaming.
"""

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

_log = logging.getLogger("ernie45.engine")
_MAGIC = b"ERNIE45P"
_CHECKSUM_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + _CHECKSUM_BYTES
_SUFFIX = ".page"
_MAX_BACKLOG = 64


class DiskPages:
    """Least-recently-used files of one fingerprint. One thread reads and one writes; all methods return at once.

    Pages of other fingerprints (another model, other weights) in the same folder count too, and are the first to go.
    """

    def __init__(self, folder: Path, max_bytes: int, fingerprint: bytes) -> None:
        self._root = Path(folder)
        self._folder = self._root / fingerprint.hex()
        self._fingerprint = fingerprint
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[Path, int] = OrderedDict()  # the least recently used first
        self._backlog: set[bytes] = set()
        self.num_errors = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pages from disk")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pages to disk")
        self._find_files()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self._path(key) in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, as far as they are known."""
        with self._lock:
            return sum(self._sizes.values())

    @property
    def has_room(self) -> bool:
        """Whether a page given to `write` now would be kept."""
        with self._lock:
            return len(self._backlog) < _MAX_BACKLOG

    def touch(self, key: bytes) -> None:
        """Count the page as used now."""
        with self._lock:
            path = self._path(key)
            if path in self._sizes:
                self._sizes.move_to_end(path)

    def write(self, key: bytes, data: bytes) -> None:
        """Keep a page, some time soon; not at all if the disk cannot follow."""
        with self._lock:
            if key in self or key in self._backlog or len(self._backlog) >= _MAX_BACKLOG:
                return
            self._backlog.add(key)
        self._writer.submit(self._write, key, data)

    def fetch(self, key: bytes) -> "Future[bytes | None]":
        """Read a page; None if it cannot be had after all, and then it is forgotten."""
        return self._reader.submit(self._read, key)

    def drain(self) -> None:
        """Wait until everything given to `write` so far is on disk, or is known to have failed."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """End both threads; what waits to be written is written first."""
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _find_files(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = sorted(self._existing(), key=lambda item: item[:2])
        except OSError as error:
            self._note(error)
            return
        self._sizes.update((path, size) for _, _, path, size in found)
        self._shrink(0)

    def _existing(self) -> Iterator[tuple[bool, float, Path, int]]:
        """(ours, time of last use, path, size) of what looks like a page; left-overs of a broken write are removed."""
        for path in self._root.glob("*/*"):
            with contextlib.suppress(OSError, ValueError):
                if path.suffix == ".part":
                    path.unlink()
                elif path.suffix == _SUFFIX and bytes.fromhex(path.stem):
                    status = path.stat()
                    yield path.parent == self._folder, status.st_mtime, path, status.st_size

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}{_SUFFIX}"

    def _checksum(self, key: bytes, data: bytes) -> bytes:
        return blake2b(self._fingerprint + key + data, digest_size=_CHECKSUM_BYTES).digest()

    def _write(self, key: bytes, data: bytes) -> None:
        path, size = self._path(key), _HEADER_BYTES + len(data)
        part = path.with_suffix(".part")
        try:
            self._shrink(size)
            if size <= self._max_bytes:
                part.write_bytes(_MAGIC + self._checksum(key, data) + data)
                part.replace(path)
                with self._lock:
                    self._sizes[path] = size
        except OSError as error:
            self._note(error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._backlog.discard(key)

    def _read(self, key: bytes) -> bytes | None:
        path = self._path(key)
        try:
            content = path.read_bytes()
            path.touch()  # the next start goes by these times
        except OSError as error:
            self._note(error)
            self._remove(path)
            return None
        data = content[_HEADER_BYTES:]
        if content[:_HEADER_BYTES] != _MAGIC + self._checksum(key, data):
            _log.warning("a page of the disk cache is damaged and was dropped: %s", path.name)
            self._remove(path)
            return None
        return data

    def _shrink(self, room: int) -> None:
        """Remove the least recently used files until there is so much room."""
        with self._lock:
            total = sum(self._sizes.values()) + room
            victims = []
            for path, size in self._sizes.items():
                if total <= self._max_bytes:
                    break
                victims.append(path)
                total -= size
        for path in victims:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._sizes.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _note(self, error: OSError) -> None:
        self.num_errors += 1
        if self.num_errors == 1:
            _log.warning("the disk cache works only in part: %s", error.strerror or type(error).__name__)
