"""Folders that are missing, damaged, or of another model: one line that says what, and nothing changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ernie45.checkpoint import convert, load_model, open_folder, read_config, resolve_model
from ernie45.checkpoint.tensor_file import make_header, read_header
from ernie45.config.errors import CheckpointError, Ernie45Error
from ernie45.config.presets import TINY_FOLDER
from tests.checkpoint.conftest import edit_config, read_tensors, snapshot


def refusal(folder: Path, tmp_path: Path) -> str:
    """The message of load_model, which convert shares; the folder stays as it is and no other appears."""
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError) as loading:
        load_model(folder)
    with pytest.raises(CheckpointError) as converting:
        convert(folder, tmp_path / "new", "paddle")
    assert str(loading.value) == str(converting.value)
    assert "\n" not in str(loading.value)
    assert snapshot(tmp_path) == before
    return str(loading.value)


def test_no_folder(tmp_path: Path) -> None:
    assert "does not exist; give a folder with config.json" in refusal(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(tmp_path / "file", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty", tmp_path)


def test_tiny_is_the_shipped_folder(monkeypatch: pytest.MonkeyPatch, saved: Callable) -> None:
    folder = saved("dense")
    monkeypatch.setattr("ernie45.checkpoint.folder.TINY_FOLDER", folder)
    assert resolve_model("tiny") == folder
    assert read_config("tiny") == read_config(folder)
    assert TINY_FOLDER.name == "tiny"


def test_another_architecture(saved: Callable, tmp_path: Path) -> None:
    folder = saved("dense")
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert "model_type 'llama', which is not of the ERNIE 4.5 family" in refusal(folder, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufffd"])
def test_a_config_that_is_not_json(saved: Callable, tmp_path: Path, text: str) -> None:
    folder = saved("dense")
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder, tmp_path)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = read_tensors(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_missing_surplus_and_misshapen_tensors_are_listed(saved: Callable, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        for expert in range(12):
            del tensors[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"]
        tensors["model.layers.9.extra"] = torch.zeros(1)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 31)

    message = refusal(change(saved("moe"), edit), tmp_path)
    assert "13 missing: " in message
    assert "model.layers.1.mlp.experts.0.up_proj.weight" in message
    assert "and 5 more" in message
    assert "1 surplus: model.layers.9.extra" in message
    assert "1 misshapen: model.layers.0.self_attn.q_proj.weight [32, 31] instead of [32, 32]" in message
    assert len(message) < 1500


def test_a_router_stored_the_wrong_way_round_is_misshapen(saved: Callable, tmp_path: Path) -> None:
    """Only the prediction module's matrix may come both ways."""
    name = "model.layers.1.mlp.gate.weight"
    message = refusal(change(saved("vl"), lambda t: t.update({name: t[name].T.contiguous()})), tmp_path)
    assert f"{name} [12, 32] instead of [32, 12]" in message


def test_weights_of_another_member_of_the_family(saved: Callable, tmp_path: Path) -> None:
    folder = saved("moe")
    (folder / "config.json").write_bytes((saved("dense") / "config.json").read_bytes())
    message = refusal(folder, tmp_path)
    assert "missing" in message
    assert "surplus" in message


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file(saved: Callable, tmp_path: Path, keep: int) -> None:
    file = saved("moe") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(file.parent, tmp_path)
    assert str(file) in message
    assert ("cut short" if keep == -1 else "not a whole safetensors file") in message


def test_a_file_that_has_grown(saved: Callable, tmp_path: Path) -> None:
    file = saved("moe") / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    assert "is damaged" in refusal(file.parent, tmp_path)


def test_a_text_file_with_that_name(saved: Callable, tmp_path: Path) -> None:
    file = saved("moe") / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "not a whole safetensors file" in refusal(file.parent, tmp_path)


def test_files_of_an_index(saved: Callable, tmp_path: Path) -> None:
    folder = saved("moe")
    convert(folder, tmp_path / "many", "pt", max_shard_bytes=20_000)
    folder = tmp_path / "many"
    (second,) = folder.glob("model-00002-of-*.safetensors")
    second.unlink()
    assert f"{second.name} cannot be read (No such file" in refusal(folder, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != second.name}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "missing: " in refusal(folder, tmp_path)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refusal(folder, tmp_path)
    for file in folder.glob("model*"):
        file.unlink()
    assert "has no *.safetensors file" in refusal(folder, tmp_path)


def test_a_tensor_in_two_files(saved: Callable, tmp_path: Path) -> None:
    folder = saved("dense")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "b.safetensors")
    assert "model.norm.weight is both in a.safetensors and in b.safetensors" in refusal(folder, tmp_path)


def test_a_file_cut_while_it_is_open(saved: Callable) -> None:
    """A memory map would end the process here."""
    file = saved("dense") / "model.safetensors"
    folder = open_folder(file.parent)
    file.write_bytes(file.read_bytes()[:-2000])
    from ernie45.checkpoint.reader import read_into

    targets = {name: torch.zeros(parameter.shape) for name, parameter in folder.parameters.items()}
    with pytest.raises(CheckpointError, match="ends early, at byte"):
        read_into(folder, targets)


def test_integer_weights(saved: Callable) -> None:
    folder = change(saved("dense"), lambda t: t.update({name: tensor.to(torch.int8) for name, tensor in t.items()}))
    with pytest.raises(CheckpointError, match="dtype I8"):
        load_model(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_damage_to_a_header_is_a_checkpoint_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    header = make_header({"a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("F32", ())}, "pt")
    raw = bytearray(header + bytes(36))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw)
    try:
        tensors = read_header(file)
    except Ernie45Error as error:
        assert isinstance(error, CheckpointError)
        return
    assert all(tensor.begin > 0 and tensor.begin + tensor.num_bytes <= len(raw) for tensor in tensors.values())
