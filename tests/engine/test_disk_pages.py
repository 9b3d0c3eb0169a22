"""Pages on disk: they survive, are bounded, and no damage, strange file or full disk is more than a miss."""

import os
from pathlib import Path

import pytest

from ernie45.engine.disk_pages import DiskPages

KEYS = [bytes([index]) * 16 for index in range(8)]
MODEL, OTHER = b"m" * 16, b"o" * 16


def filled(folder: Path, keys: list[bytes], *, max_bytes: int = 1 << 20, fingerprint: bytes = MODEL) -> DiskPages:
    disk = DiskPages(folder, max_bytes, fingerprint)
    for key in keys:
        disk.write(key, key * 10)
        disk.drain()
    return disk


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_pages_survive_a_restart(tmp_path: Path):
    filled(tmp_path, KEYS[:3]).close()
    disk = DiskPages(tmp_path, 1 << 20, MODEL)
    assert [key in disk for key in KEYS[:4]] == [True, True, True, False]
    assert disk.fetch(KEYS[1]).result() == KEYS[1] * 10
    disk.close()


def test_pages_of_another_model_are_not_found_but_count(tmp_path: Path):
    filled(tmp_path, KEYS[:3]).close()
    size = files(tmp_path)[0].stat().st_size
    disk = filled(tmp_path, KEYS[3:5], max_bytes=4 * size, fingerprint=OTHER)
    assert KEYS[0] not in disk
    assert disk.num_bytes == 4 * size == sum(path.stat().st_size for path in files(tmp_path))
    assert KEYS[3] in disk
    assert KEYS[4] in disk
    disk.close()


def test_the_least_recently_used_go_first(tmp_path: Path):
    disk = filled(tmp_path, KEYS[:3])
    size = disk.num_bytes // 3
    disk.close()
    disk = DiskPages(tmp_path, 3 * size, MODEL)
    disk.touch(KEYS[0])
    disk.write(KEYS[3], KEYS[3] * 10)
    disk.drain()
    assert [key in disk for key in KEYS[:4]] == [True, False, True, True]
    disk.close()


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "another page", "gone"])
def test_damaged_pages_are_dropped(tmp_path: Path, damage: str):
    disk = filled(tmp_path, KEYS[:2])
    path, other = (disk._path(key) for key in KEYS[:2])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    {
        "a bit": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-5]),
        "empty": lambda: path.write_bytes(b""),
        "another page": lambda: path.write_bytes(other.read_bytes()),
        "gone": path.unlink,
    }[damage]()
    assert disk.fetch(KEYS[0]).result() is None
    assert KEYS[0] not in disk
    assert not path.exists()
    assert disk.fetch(KEYS[1]).result() == KEYS[1] * 10
    disk.write(KEYS[0], KEYS[0] * 10)
    disk.drain()
    assert disk.fetch(KEYS[0]).result() == KEYS[0] * 10
    disk.close()


def test_files_of_others_are_left_alone_and_broken_writes_cleared_away(tmp_path: Path):
    filled(tmp_path, KEYS[:1]).close()
    folder = files(tmp_path)[0].parent
    (folder / "notes.txt").write_text("mine")
    (folder / "not-hex.page").write_text("mine too")
    (folder / f"{KEYS[1].hex()}.part").write_bytes(b"half a page")
    disk = DiskPages(tmp_path, 1, MODEL)
    assert [path.name for path in files(tmp_path)] == ["not-hex.page", "notes.txt"]
    assert len(disk) == 0
    disk.close()


def test_a_full_disk_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    disk = filled(tmp_path, KEYS[:1])

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for key in KEYS[1:3]:
            disk.write(key, b"x")
        disk.drain()
    assert KEYS[1] not in disk
    assert disk.num_errors == 2
    assert caplog.text.count("No space left on device") == 1
    disk.write(KEYS[1], b"x")
    disk.drain()
    assert disk.fetch(KEYS[1]).result() == b"x"
    disk.close()


def test_a_folder_that_cannot_be_made_is_an_empty_cache(tmp_path: Path):
    (tmp_path / "file").write_text("")
    disk = DiskPages(tmp_path / "file" / "pages", 1 << 20, MODEL)
    disk.write(KEYS[0], b"x")
    disk.drain()
    assert KEYS[0] not in disk
    assert disk.num_errors == 2
    disk.close()


def test_a_disk_that_cannot_follow_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ernie45.engine.disk_pages._MAX_BACKLOG", 0)
    disk = filled(tmp_path, KEYS[:1])
    assert len(disk) == 0
    disk.close()
