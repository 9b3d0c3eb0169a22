"""Every form of record is told by its keys and read as it is meant; a bad one says why."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie45.config.errors import ConfigError, DataError
from ernie45.data.dataset import Dataset, source_name
from ernie45.data.records import Document, Pair, Prompt, Record
from tests.data.formats.test_files import write_parquet, write_tar


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "PNG")
    return file.getvalue()


def read(folder: Path, data: Any, want: tuple[type, ...] = (), form: str = "auto") -> Any:
    path = folder / "set.jsonl"
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    (folder / "red.png").write_bytes(png())
    return Dataset([path], want, form)[0]


def roles(record: Any) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in record.messages]


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_erniekit_text(tmp_path: Path) -> None:
    record = read(tmp_path, {"system": "s", "src": ["q ", "r"], "tgt": ["a", " b"], "label": [0, 1], "id": 7})
    assert isinstance(record, Record)
    assert roles(record) == [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    assert record.trained == (False, True)
    assert (record.source, record.origin) == ("set", f"{tmp_path}/set.jsonl:1")
    named = read(tmp_path, {"is_system": 1, "src": ["s", "q"], "tgt": ["ok", "a"]})
    assert roles(named) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    thought = "<think>\nt\n</think>\n\na"
    assert roles(read(tmp_path, {"src": "q", "tgt": thought})) == [("user", "q"), ("assistant", thought)]


def test_erniekit_pictures(tmp_path: Path) -> None:
    record = read(
        tmp_path,
        {
            "text_info": [
                {"text": "look ", "tag": "mask"},
                {"text": "and say", "tag": "mask"},
                {"text": "red", "tag": "no_mask"},
                {"text": "sure?", "tag": "mask"},
                {"text": "yes", "tag": "no_mask"},
            ],
            "image_info": [{"matched_text_index": 1, "image_url": "red.png", "image_width": 28, "image_height": 28}],
        },
    )
    picture = {"type": "image", "image": tmp_path / "red.png"}
    parts = [{"type": "text", "text": "look"}, picture, {"type": "text", "text": "and say"}]
    assert roles(record) == [("user", parts), ("assistant", "red"), ("user", "sure?"), ("assistant", "yes")]
    ordered = read(
        tmp_path,
        {
            "text_info": [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}],
            "image_info": [{"image_url": "red.png"}],
            "order": {"type": ["text", "image", "text"], "index": [0, 0, 1]},
        },
    )
    assert roles(ordered)[0][1] == [{"type": "text", "text": "q"}, picture]


def test_an_erniekit_array_as_its_own_reader_wants_it(tmp_path: Path) -> None:
    sample = {
        "image_info": [{"matched_text_index": 0, "image_url": "red.png"}],
        "text_info": [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}],
    }
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "vl.jsonl").write_text(json.dumps([sample, sample], indent=2), encoding="utf-8")
    found = Dataset([tmp_path / "vl.jsonl"])
    assert [found.find(index).form for index in range(len(found))] == ["erniekit-vl"] * 2


def test_erniekit_pairs(tmp_path: Path) -> None:
    pair = read(tmp_path, {"src": ["p", "q"], "tgt": ["o"], "response": [["bad"], ["good", "and?", "more"]], "sort": [0, 2]})
    assert isinstance(pair, Pair)
    assert [message["content"] for message in pair.prompt] == ["p", "o", "q"]
    assert [message["role"] for message in pair.chosen] == ["assistant", "user", "assistant"]
    assert (pair.rejected[0]["content"], pair.margin) == ("bad", 2.0)
    assert pair.side(True).trained == (False, True, True)


def test_openai_messages_with_pictures_everywhere(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "image", "image": url},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": "q"},
    ]
    messages = [{"role": "user", "content": content}, {**ANSWER, "loss": False}, QUESTION, {**ANSWER, "weight": 1}]
    record = read(tmp_path, {"messages": messages, "images": ["red.png"], "thinking": False})
    picture = {"type": "image", "image": tmp_path / "red.png"}
    far = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    near = {"type": "image_url", "image_url": {"url": url}}
    assert record.messages[0]["content"] == [picture, near, picture, far, content[4]]
    assert record.messages[1] == ANSWER
    assert (record.trained, record.thinking) == ((False, True), False)


def test_pictures_beside_the_messages(tmp_path: Path) -> None:
    picture = {"type": "image", "image": tmp_path / "red.png"}
    before = read(tmp_path, {"messages": [QUESTION, ANSWER], "images": ["red.png"]})
    assert before.messages[0]["content"] == [picture, {"type": "text", "text": "q"}]
    marked = read(tmp_path, {"messages": [{"role": "user", "content": "is <image> red?"}, ANSWER], "images": ["red.png"]})
    assert marked.messages[0]["content"] == [{"type": "text", "text": "is "}, picture, {"type": "text", "text": " red?"}]
    plain = read(tmp_path, {"messages": [{"role": "user", "content": "what is <image> in HTML?"}, ANSWER]})
    assert plain.messages[0]["content"] == "what is <image> in HTML?"


def test_pictures_inside_a_table(tmp_path: Path) -> None:
    """As the Hub's data sets keep them: bytes in a struct, and all keys in all parts."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "q"}]
    row = {"messages": [{"role": "user", "content": parts}], "images": [{"bytes": png(), "path": None}], "answer": "red"}
    path = write_parquet(tmp_path / "set.parquet", [row])
    record = Dataset([path], (Record,))[0]
    assert isinstance(record, Record)
    assert record.messages[0]["content"] == [{"type": "image", "image": png()}, {"type": "text", "text": "q"}]


def test_pictures_inside_an_archive(tmp_path: Path) -> None:
    named = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "2.b.png"}}]}, ANSWER]
    path = write_tar(
        tmp_path / "set.tar",
        {
            "1.json": json.dumps({"messages": [QUESTION, ANSWER]}).encode(),
            "1.png": png(),
            "2.json": json.dumps({"messages": named}).encode(),
            "2.a.png": b"another",
            "2.b.png": png(),
            "3.txt": b"red",
            "3.png": png(),
        },
    )
    found, picture = Dataset([path]), {"type": "image", "image": png()}
    assert found[0].messages[0]["content"] == [picture, {"type": "text", "text": "q"}]  # type: ignore[union-attr]
    assert found[1].messages[0]["content"] == [picture]  # type: ignore[union-attr]
    assert found[2].parts == (picture, {"type": "text", "text": "red"})  # type: ignore[union-attr]


def test_tools_and_their_results(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "price", "arguments": {"of": "x"}}}
    messages = [QUESTION, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": [{"price": 1}]}, ANSWER]
    record = read(tmp_path, {"messages": messages, "tools": [{"type": "function", "function": {"name": "price"}}]})
    assert record.messages[2]["content"] == '[{"price": 1}]'
    assert record.tools[0]["function"]["name"] == "price"


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a"},
        {"messages": [QUESTION, ANSWER], "answer": "what some other program keeps there"},
    ],
)
def test_other_forms_of_one_question(tmp_path: Path, data: dict) -> None:
    assert roles(read(tmp_path, data, (Record,))) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b", "system": ""},
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
        {"prompt": "q", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, {**ANSWER, "content": "b"}]},
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, {**ANSWER, "content": "b"}]},
    ],
)
def test_preference_pairs(tmp_path: Path, data: dict) -> None:
    pair = read(tmp_path, data, (Pair,))
    assert (pair.prompt, pair.chosen) == ((QUESTION,), (ANSWER,))
    assert pair.rejected[0]["content"] == "b"


def test_prompts_with_answers(tmp_path: Path) -> None:
    prompt = read(tmp_path, {"question": "q", "answer": 5, "domain": "math", "tests": ["x"], "image": "red.png"})
    assert isinstance(prompt, Prompt)
    assert (prompt.answer, prompt.domain, prompt.extra) == ("5", "math", {"tests": ["x"]})
    assert prompt.messages[0]["content"][0] == {"type": "image", "image": tmp_path / "red.png"}
    (tmp_path / "sums.csv").write_text("question,answer\n1+1?,2\n", encoding="utf-8")
    table = Dataset([tmp_path / "sums.csv"], (Prompt,))
    assert (table[0].messages[0]["content"], table[0].answer) == ("1+1?", "2")  # type: ignore[union-attr]


def test_documents(tmp_path: Path) -> None:
    picture = {"type": "image", "image": tmp_path / "red.png"}
    assert read(tmp_path, {"text": "all of it"}) == Document(
        parts=({"type": "text", "text": "all of it"},), source="set", origin=f"{tmp_path}/set.jsonl:1"
    )
    assert read(tmp_path, {"tgt": ["all of it"]}).parts == ({"type": "text", "text": "all of it"},)
    mixed = read(tmp_path, {"content": [{"type": "text", "text": "a"}, {"type": "image", "image": "red.png"}]})
    assert mixed.parts == ({"type": "text", "text": "a"}, picture)
    assert read(tmp_path, {"text": "shown", "images": ["red.png"]}).parts[0] == picture
    (tmp_path / "book.txt").write_text("whole", encoding="utf-8")
    assert Dataset([tmp_path / "book.txt"])[0].parts[0]["text"] == "whole"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "want", "message"),
    [
        ({"src": ["q"], "tgt": []}, (), "tgt must be a text or a list of texts, and not empty"),
        ({"src": ["q"], "tgt": ["a", "b"]}, (), r"src \(1\), tgt \(2\) and label \(\[1\]\) must be equally long"),
        ({"src": ["q"], "tgt": [" "]}, (), r"tgt\[0\] must be a text, and not empty"),
        ({"messages": [QUESTION]}, (), "ends with a message of role user; add the assistant's answer"),
        ({"messages": []}, (), "messages must be a list of at least one message"),
        ({"messages": [{"role": "bot", "content": "x"}]}, (), r"messages\[0\].role \('bot'\) must be one of"),
        ({"messages": [QUESTION, {**ANSWER, "loss": "no"}]}, (), r"loss \('no'\) must be 0 or 1"),
        ({"messages": [QUESTION, ANSWER], "images": ["gone.png"]}, (), r"images\[0\] \(.*gone.png\) does not exist"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, (), "more places for a image than the 0"),
        ({"messages": [QUESTION, ANSWER]}, (Prompt,), "no prompt with an answer to verify"),
        ({"messages": [QUESTION, ANSWER]}, (Pair,), r"form openai \(conversations with answers\), but preference pairs"),
        ({"question": "q", "answer": ""}, (Prompt,), "prompt without an answer"),
        ({"prompt": "q"}, (Prompt,), "fit none of .*; add the answer to its prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, (), "chosen and rejected are equal"),
        ({"src": "q", "tgt": [], "response": [["a"], ["b"]], "sort": [1, 1]}, (), "must be two different numbers"),
        ({"src": "q", "tgt": [], "response": [["a", "b"], ["b"]], "sort": [1, 0]}, (), "a response must be 1, 3, ... texts"),
        ({"text_info": [{"text": "a", "tag": "no_mask"}]}, (), "must begin with tag mask"),
        ({"text_info": [{"text": "a", "tag": "no"}]}, (), r"text_info\[0\].tag \('no'\) must be mask or no_mask"),
        (
            {"text_info": [{"text": "a", "tag": "mask"}], "image_info": [{"image_url": "red.png", "matched_text_index": 4}]},
            (),
            "matched_text_index of 1 pictures must be from 0 to 0",
        ),
        ({"text": ""}, (), "has no text"),
        ({"colour": "red"}, (), "has the keys colour, which fit none of"),
        ([1], (), "must be a JSON object, is list"),
    ],
)
def test_bad_records_say_why(tmp_path: Path, data: Any, want: tuple, message: str) -> None:
    if data == [1]:
        (tmp_path / "list.json").write_text("[[1]]", encoding="utf-8")
        with pytest.raises(DataError, match=message):
            Dataset([tmp_path / "list.json"])[0]
        return
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, data, want)
    assert "set.jsonl:1" in str(caught.value)


def test_a_form_can_be_forced(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, {"text": "t", "question": "q", "answer": "a"}, form="documents"), Document)
    with pytest.raises(DataError, match="lacks 'messages', which the form openai needs"):
        read(tmp_path, {"text": "t"}, form="openai")
    with pytest.raises(ConfigError, match=r"format \('opnai'\) must be one of .*; did you mean openai\?"):
        read(tmp_path, {"text": "t"}, form="opnai")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("web.jsonl", "web"),
        ("web.part1.jsonl.gz", "web"),
        ("web-00003.tar", "web"),
        ("web_00003-of-00010.parquet", "web"),
        ("web-2024.jsonl", "web-2024"),
        ("web2.jsonl", "web2"),
        ("part-12.jsonl", "part-12"),
        ("2024.jsonl", "2024"),
    ],
)
def test_numbered_parts_are_one_source(name: str, source: str) -> None:
    assert source_name(Path("folder.x") / name) == source


def test_several_files_are_one_set(tmp_path: Path) -> None:
    for name, count in (("web.1.jsonl", 2), ("code.jsonl", 3), ("web.2.jsonl", 1)):
        (tmp_path / name).write_text('{"text": "x"}\n' * count, encoding="utf-8")
    found = Dataset([tmp_path / name for name in ("web.1.jsonl", "code.jsonl", "web.2.jsonl")])
    assert {name: numbers.tolist() for name, numbers in found.sources.items()} == {"web": [0, 1, 5], "code": [2, 3, 4]}
    assert found.origin(5) == f"{tmp_path}/web.2.jsonl:1"
    assert [record.source for record in found] == ["web", "web", "code", "code", "code", "web"]
