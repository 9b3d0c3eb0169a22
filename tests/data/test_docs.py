"""docs/data.md says what is there: every form with an example that is read as it, every setting by its name."""

import json
import re
from dataclasses import fields
from pathlib import Path

from PIL import Image

from ernie45.config.data import CorpusConfig, DataConfig
from ernie45.data.dataset import Dataset
from ernie45.data.formats.archives import SUFFIXES
from ernie45.data.formats.forms import FORMS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_form_has_an_example_that_is_read_as_it(tmp_path: Path) -> None:
    examples = dict(re.findall(r"^\| `([\w-]+)` \| [\w, ]+ \| `(\{.*\})` \|$", TEXT, flags=re.M))
    assert set(examples) == set(FORMS)
    Image.new("RGB", (28, 28)).save(tmp_path / "red.png")
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(examples.values()), encoding="utf-8")
    dataset = Dataset([path])
    assert [dataset.find(index).form for index in range(len(dataset))] == list(examples)
    assert all(json.loads(example) for example in examples.values())


def test_every_setting_is_one() -> None:
    known = {item.name for kind in (DataConfig, CorpusConfig) for item in fields(kind)}
    named = set(re.findall(r"`data\.(\w+)", TEXT))
    assert named <= known
    assert {"loss_on", "weighting", "weights", "workers", "on_bad", "record_tokens"} <= named


def test_every_kind_of_file_is_named() -> None:
    assert all(f"`{suffix}`" in TEXT for suffix in SUFFIXES if suffix.startswith("."))
