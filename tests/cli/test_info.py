"""`ernie45 info`: the printed table."""

import json
from pathlib import Path

import pytest

from ernie45 import cli
from ernie45.config.presets import TINY_FOLDER

TABLE_28B = """\
text experts                    20,384,317,440     1,911,029,760
vision experts                   6,794,772,480       637,009,920
shared experts                     637,009,920       637,009,920
ViT                                630,433,280    once a picture
attention                          440,401,920       440,401,920
embedding (tied head)              264,765,440       264,765,440
resampler                          144,225,280    once a picture
dense MLP layer 0                   94,371,840        94,371,840
routers + correction bias            8,850,816         8,850,816
norms                                  145,920           145,920
total                           29,399,294,336
"""


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["info", *arguments]) == 0
    return capsys.readouterr().out


def test_the_28b_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = info(capsys, "28b-a3b")
    assert TABLE_28B in text
    for figure in ("3.357 B", "3.092 B", "2.083 B", "2.857 B", "21.825 B", "54.8 GiB", "57,344 bytes a token"):
        assert figure in text
    assert "not verified" not in text


def test_what_is_not_verified_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "* not verified:\n  - every figure" in info(capsys, "424b-a47b")
    family = info(capsys)
    assert "424b-a47b*" in family
    assert "28b-a3b " in family


@pytest.mark.parametrize("arguments", [[], ["tiny"], ["0.3b"], ["21b-a3b"], ["28b-a3b"], ["300b-a47b"], ["424b-a47b"]])
def test_it_fits_eighty_columns(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    long = [line for line in info(capsys, *arguments).splitlines() if len(line) > 80]
    assert long == []


def test_keys_without_effect_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = json.loads((TINY_FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"moe_capacity": [8, 8, 8]}))
    assert "keys without effect here: moe_capacity, torch_dtype, use_cache" in info(capsys, str(tmp_path))
