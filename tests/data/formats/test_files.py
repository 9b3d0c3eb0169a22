"""Files are read by number without being held, and say where a bad record is."""

import csv
import gzip
import io
import json
import pickle
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.errors import ConfigError, DataError
from ernie45.data.formats import archives
from ernie45.data.formats.archives import open_records

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=6)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def all_data(path: Path) -> list:
    file = open_records(path)
    return [file.read(index).data for index in range(len(file))]


def test_lines_blank_lines_bom_and_windows_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}\n{"a": "\xc3\xa9"}')
    assert all_data(path) == [{"a": 1}, {"a": 2}, {"a": "é"}]
    assert [open_records(path).origin(index) for index in range(3)] == [f"{path}:{line}" for line in (1, 4, 5)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_is_an_array_whatever_its_name(tmp_path: Path, name: str) -> None:
    data = [{"text": 'a "quoted\\" ] , } [ {', "list": [1, [2, {}]]}, {"text": "\\"}, {}]
    path = write(tmp_path / name, json.dumps(data, indent=2))
    assert all_data(path) == data
    assert open_records(path).origin(1).endswith(":12"), path.read_text()
    assert all_data(write(tmp_path / "flat.json", json.dumps(data))) == data


def test_every_file_can_go_to_another_process(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n'),
        write(tmp_path / "b.csv", "question,answer\none,1\ntwo,2\n"),
        write_tar(tmp_path / "c.tar", {"x.json": b'{"a": 1}', "y.json": b'{"a": 2}'}),
        write_parquet(tmp_path / "d.parquet", [{"a": 1}, {"a": 2}]),
    ]
    for path in paths:
        file = open_records(path)
        file.read(0)
        assert pickle.loads(pickle.dumps(file)).read(1).data == file.read(1).data


def test_csv_with_line_ends_inside_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'question;answer;note\n"two\nlines; ""so""";5;\nnext;6;é\nshort;7\n')
    file = open_records(path)
    assert file.read(0).data == {"question": 'two\nlines; "so"', "answer": "5"}
    assert file.read(1).data == {"question": "next", "answer": "6", "note": "é"}
    assert [file.origin(index) for index in range(3)] == [f"{path}:{line}" for line in (2, 4, 5)]
    with pytest.raises(DataError, match=r"a.csv:5 has 2 fields, but the header has 3"):
        file.read(2)


def test_gzip_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert all_data(path) == [{"a": 1}, {"a": 2}]
    kept = list((tmp_path / "cache" / "ernie45" / "unpacked").iterdir())
    assert len(kept) == 1
    assert open_records(path).origin(1) == f"{path}:2"
    assert all_data(path)
    assert list((tmp_path / "cache" / "ernie45" / "unpacked").iterdir()) == kept
    damaged = write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100)[:-9])
    with pytest.raises(DataError, match=r"b.jsonl.gz\) is a damaged or cut-off gzip"):
        open_records(damaged)


def test_parquet_rows_lists_and_missing_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}], "answer": "1"}, {"answer": None, "messages": []}]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for count in (2, 3):  # one group of rows, and two, which are unpacked
        path = write_parquet(tmp_path / "a.parquet", rows * count)
        file = open_records(path)
        assert len(file) == 2 * count
        assert [file.read(index).data for index in range(2 * count)] == [rows[0], {"messages": []}] * count
        assert file.origin(1) == f"{path}:row 2"
    assert len(list((tmp_path / "cache" / "ernie45" / "unpacked").iterdir())) == 1
    with pytest.raises(DataError, match="no Parquet or damaged"):
        open_records(write(tmp_path / "b.parquet", path.read_bytes()[:-20]))
    monkeypatch.setattr(archives, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ernie45\[train\]'"):
        open_records(path)


def test_tar_groups_files_by_key(tmp_path: Path) -> None:
    picture = b"\x89PNG..."
    path = write_tar(
        tmp_path / "a.tar",
        {
            "part/1.json": b'{"messages": []}',
            "part/1.left.png": picture,
            "2.txt": b"what it shows",
            "2.jpg": picture,
            "3.png": picture,
        },
    )
    file = open_records(path)
    assert [file.origin(index) for index in range(3)] == [f"{path}:part/1", f"{path}:2", f"{path}:3"]
    assert file.read(0).data == {"messages": [], "images": ["1.left.png"]}
    assert file.read(0).files["1.left.png"] == picture
    assert file.read(1).data == {"images": ["2.jpg"], "text": "what it shows"}
    with pytest.raises(DataError, match=r"a.tar:3 has neither .json nor .txt"):
        file.read(2)
    with pytest.raises(DataError, match="is no tar or is cut off"):
        open_records(write(tmp_path / "b.tar", path.read_bytes()[:700]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl:2 is cut off after 6 bytes"),
        ("a.jsonl", b'{"a" 1}\n', r"a.jsonl:1 is not JSON: Expecting ':' delimiter at character 6"),
        ("a.jsonl", b'{"a": "\xff"}', r"a.jsonl:1 is not UTF-8 at byte 8"),
        ("a.json", b'[{"a": 1},\n {"a": 2, "b": [', r"a.json:2 is cut off"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl:1 (has too many|is cut off)"),
        ("a.jsonl", b"", r"a.jsonl\) is empty"),
        ("a.jsonl", b"\n \n", r"a.jsonl\) is empty"),
        ("a.json", b"[]", r"a.json\) is empty"),
        ("a.csv", b"question,answer\n", r"a.csv\) is empty"),
        ("a.csv", b"", r"a.csv\) is empty"),
        ("a.csv", b"question,answer\nx\ry,1\n", r"a.csv:2 is no row of a table"),
        ("a.docx", b"x", r"a.docx\) must end in .jsonl"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        all_data(write(tmp_path / name, data))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "[{,", "}]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.sampled_from([None, 0, 3]), st.booleans())
def test_any_array_and_any_lines_are_read_back(records: list, indent: int | None, ascii_only: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        array, lines = Path(folder, "a.json"), Path(folder, "b.jsonl")
        array.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
        assert all_data(array) == records
        objects = [{"value": record} for record in records]
        lines.write_text("\n".join(json.dumps(item) for item in objects), encoding="utf-8")
        assert all_data(lines) == objects


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]))
def test_any_table_is_read_back(rows: list[tuple[str, str]], mark: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=mark).writerows([("question", "answer"), *rows])
        expected = [{name: text for name, text in zip(("question", "answer"), row, strict=True) if text} for row in rows]
        assert all_data(path) == expected


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder; name the files in it"):
        open_records(tmp_path)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path
