"""Converting: bit-identical round trips, types kept, other files carried, memory bounded, whole or not at all."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ernie45.checkpoint import convert, open_folder, staging
from ernie45.checkpoint.inventory import inventory
from ernie45.checkpoint.layouts import find_layout
from ernie45.checkpoint.layouts.table import expand
from ernie45.config.errors import CheckpointError, StorageError
from ernie45.config.model import ModelConfig
from ernie45.config.model_json import config_to_json
from tests.checkpoint.conftest import FAMILIES, assert_identical, edit_config, read_tensors, snapshot
from tests.checkpoint.test_layouts import TEXT


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_identical(saved: Callable, family: str, tmp_path: Path) -> None:
    """pt -> paddle -> native -> pt, in shards of different sizes; routers and norms of other types than the rest."""
    native = saved(family)
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(native).items()}
    for name in tensors:
        if "mlp.gate.weight" in name or "correction_bias" in name:
            tensors[name] = tensors[name].float() * 1.0001
        elif name.endswith("layernorm.weight"):
            tensors[name] = tensors[name].half()
    save_file(tensors, native / "model.safetensors", metadata={"format": "pt"})
    convert(native, tmp_path / "pt", "pt", max_shard_bytes=20_000)
    convert(tmp_path / "pt", tmp_path / "paddle", "paddle", max_shard_bytes=9_000)
    convert(tmp_path / "paddle", tmp_path / "native", "native")
    convert(tmp_path / "native", tmp_path / "again", "pt", max_shard_bytes=5_000)
    assert_identical(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "pt"))
    assert_identical(read_tensors(tmp_path / "native"), tensors)
    assert (tmp_path / "paddle" / "model.safetensors.index.json").is_file()
    configs = {name: open_folder(tmp_path / name).config for name in ("pt", "paddle", "native", "again")}
    assert len(set(configs.values())) == 1
    assert configs["pt"] == open_folder(native).config


def test_the_paddle_layout_is_fused_and_transposed(theirs: Callable, tmp_path: Path) -> None:
    """Against plain torch on single tensors: what our own reader undoes is not compared with itself."""
    source = theirs("vl")[1]
    convert(source, tmp_path / "paddle", "paddle")
    old, new = read_tensors(source), read_tensors(tmp_path / "paddle")
    attention = [old[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(new["ernie.layers.1.self_attn.qkv_proj.weight"], torch.cat(attention).T)
    for expert in (0, 3, 11, 12, 23):  # the last two are vision experts
        own = f"layers.2.mlp.experts.{expert}"
        halves = [old[f"model.{own}.gate_proj.weight"], old[f"model.{own}.up_proj.weight"]]
        assert torch.equal(new[f"ernie.{own}.up_gate_proj.weight"], torch.cat(halves).T)
        assert torch.equal(new[f"ernie.{own}.down_proj.weight"], old[f"model.{own}.down_proj.weight"].T)
    for name in ("mlp.gate.weight", "mlp.gate.weight_1", "mlp.moe_statics.e_score_correction_bias", "input_layernorm.weight"):
        assert torch.equal(new[f"ernie.layers.1.{name}"], old[f"model.layers.1.{name}"])
    assert torch.equal(new["ernie.embed_tokens.weight"], old["model.embed_tokens.weight"])
    mlp = "vision_model.blocks.1.mlp.fc1"
    assert torch.equal(new[f"{mlp}.weight"], old[f"model.{mlp}.weight"].T)
    assert torch.equal(new[f"{mlp}.bias"], old[f"model.{mlp}.bias"])
    linear = "resampler_model.temporal_linear"
    assert torch.equal(new[f"ernie.{linear}.0.weight"], old[f"model.{linear}.0.weight"].T)
    assert torch.equal(new[f"ernie.{linear}.3.weight"], old[f"model.{linear}.3.weight"])


def random_folder(path: Path, config: ModelConfig = TEXT, *, transposed_join: bool = False) -> Path:
    """A text model in -PT names, made from the table alone."""
    slots = expand(find_layout("pt"), config, inventory(config))
    tensors = {slot.tensor: torch.randn(slot.shape) for slot in slots}
    if transposed_join:
        tensors["model.mtp_linear_proj.0.weight"] = tensors["model.mtp_linear_proj.0.weight"].T.contiguous()
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config_to_json(config, "pt", dtype="float32")))
    return path


def test_multi_token_prediction_is_converted(tmp_path: Path) -> None:
    """The 300B release stores the joining matrix the other way round; both ways are read, ours is written."""
    torch.manual_seed(1)
    one = random_folder(tmp_path / "one")
    torch.manual_seed(1)
    other = random_folder(tmp_path / "other", transposed_join=True)
    convert(one, tmp_path / "paddle", "paddle")
    convert(tmp_path / "paddle", tmp_path / "pt", "pt")
    assert_identical(read_tensors(tmp_path / "pt"), read_tensors(one))
    convert(other, tmp_path / "other pt", "pt")
    assert_identical(read_tensors(tmp_path / "other pt"), read_tensors(one))


def test_every_tensor_begins_at_a_multiple_of_its_item(tmp_path: Path) -> None:
    """Readers that map a file cannot use fp32 values at odd places; bf16 vectors of odd length lie before the routers."""
    source = random_folder(tmp_path / "odd", replace(TEXT, hidden_size=21))
    tensors = {name: t if "gate.weight" in name else t.bfloat16() for name, t in read_tensors(source).items()}
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "new", "pt")
    assert_identical(read_tensors(tmp_path / "new"), tensors)
    written = open_folder(tmp_path / "new").tensors.values()
    assert {tensor.dtype for tensor in written} == {"F32", "BF16"}
    assert all(tensor.begin % (tensor.num_bytes // math.prod(tensor.shape)) == 0 for tensor in written)


def test_other_files_and_foreign_keys_are_carried(saved: Callable, tmp_path: Path) -> None:
    source = saved("vl")
    convert(source, tmp_path / "pt", "pt")
    edit_config(tmp_path / "pt", auto_map={"AutoModel": "modeling.Model"}, moe_capacity=[1, 2, 3])
    extra = {"tokenizer.json": '{"added_tokens": [{"id": 125, "content": "<|VIDEO_PLACEHOLDER|>"}]}', "modeling.py": "x = 1\n"}
    for name, text in extra.items():
        (tmp_path / "pt" / name).write_text(text)
    for name in ("pytorch_model.bin", ".hidden"):
        (tmp_path / "pt" / name).write_text("not carried")
    convert(tmp_path / "pt", tmp_path / "paddle", "paddle")
    names = {file.name for file in (tmp_path / "paddle").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", *extra}
    assert all((tmp_path / "paddle" / name).read_text() == text for name, text in extra.items())
    written = json.loads((tmp_path / "paddle" / "config.json").read_text())
    assert written["auto_map"] == {"AutoModel": "modeling.Model"}
    assert written["moe_capacity"] == [1, 2, 3]
    convert(tmp_path / "paddle", tmp_path / "native", "native")
    native = json.loads((tmp_path / "native" / "config.json").read_text())
    assert "auto_map" not in native
    assert native["video_token_id"] == 125, "the tokenizer knows the id of the video placeholder"


def test_a_module_that_transformers_drops_is_not_promised(saved: Callable, tmp_path: Path) -> None:
    source = saved("moe")
    edit_config(source, num_nextn_predict_layers=1)
    for layout in ("paddle", "pt"):
        convert(source, tmp_path / layout, layout)
        assert open_folder(tmp_path / layout).config.num_mtp_layers == 0


def test_progress_counts_every_byte(theirs: Callable, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    convert(theirs("moe")[1], tmp_path / "pt", "pt", progress=lambda *call: calls.append(call))
    assert len(calls) == len(read_tensors(tmp_path / "pt"))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][0] == calls[-1][1] == sum(tensor.nbytes for tensor in read_tensors(tmp_path / "pt").values())


def test_the_source_is_not_the_destination(saved: Callable) -> None:
    folder = saved("dense")
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match="is the source"):
        convert(folder, folder, "pt", overwrite=True)
    assert snapshot(folder) == before


def test_pieces_of_different_types_do_not_become_one_tensor(saved: Callable, tmp_path: Path) -> None:
    folder = saved("dense")
    tensors = read_tensors(folder)
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.k_proj.weight"].half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"k_proj.*different dtypes \(F16, F32\).*qkv_proj"):
        convert(folder, tmp_path / "paddle", "paddle")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_is_seen_before_the_first_byte(theirs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(StorageError, match=r"disk is full, [\d,]{7,} bytes are needed in all and 1,234 are free; free some"):
        convert(theirs("moe")[1], tmp_path / "new", "pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at_byte", [0, 100, 30_000])
def test_a_disk_that_fills_up(theirs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_byte: int) -> None:
    """The error names the file; what was there before stays, what was begun goes."""
    (tmp_path / "new").mkdir()
    room, write = [at_byte], os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return write(descriptor, data)

    monkeypatch.setattr(staging.os, "write", full)
    with pytest.raises(
        StorageError, match=r"new\.incomplete-\w+/model\S*safetensors cannot be written: the disk is full"
    ) as caught:
        convert(theirs("moe")[1], tmp_path / "new", "paddle", max_shard_bytes=20_000)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_a_real_full_disk(theirs: Callable, tmp_path: Path) -> None:
    """The kernel's own refusal: a limit on the size of files."""
    code = (
        "import resource, signal, sys; from ernie45.checkpoint import convert; from ernie45.config.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: convert(sys.argv[1], sys.argv[2], 'pt')\n"
        "except StorageError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(theirs("moe")[1]), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "model.safetensors cannot be written: the disk is full" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(theirs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="is not a folder; create it first"):
        convert(theirs("dense")[1], tmp_path / "no" / "new", "pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"new.*cannot be written \(Permission denied\)"):
        convert(theirs("dense")[1], tmp_path / "new", "pt")


_SLOW = """
import sys, time
from ernie45.checkpoint import convert
def pause(done, total, name):
    print(done, flush=True)
    time.sleep(60 if done > total // 2 else 0)
convert(sys.argv[1], sys.argv[2], "paddle", progress=pause, max_shard_bytes=20_000, overwrite=True)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(theirs: Callable, tmp_path: Path, existing: bool) -> None:
    source, target = theirs("moe")[1], tmp_path / "new"
    if existing:
        convert(theirs("dense")[1], target, "pt")
    before = snapshot(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(source), str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    total = sum(tensor.nbytes for tensor in read_tensors(source).values())
    while int(process.stdout.readline()) <= total // 2:
        pass
    (leftover,) = tmp_path.glob(".new.incomplete-*")
    assert list(leftover.glob("*.safetensors")), "it was in the middle of writing"
    # While the other runs, its folder is not taken for a leftover.
    convert(theirs("dense")[1], tmp_path / "other", "pt")
    with pytest.raises(StorageError) if existing else pytest.raises(CheckpointError):
        convert(theirs("dense")[1], target, "pt") if existing else open_folder(target)
    assert leftover.is_dir()
    shutil.rmtree(tmp_path / "other")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    now = snapshot(tmp_path)
    assert {name: data for name, data in now.items() if not name.startswith(".new.incomplete-")} == before
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_folder(leftover)
    convert(source, target, "paddle", overwrite=existing)
    assert open_folder(target).layout.name == "paddle"
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "the rerun has cleaned up"


def test_killed_between_the_two_renames(theirs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing a folder takes two renames; after a kill between them the next run puts the old folder back."""
    convert(theirs("dense")[1], tmp_path / "new", "pt")
    before = snapshot(tmp_path)
    (tmp_path / "new").rename(tmp_path / ".new.replaced-00000000")
    with pytest.raises(StorageError, match="exists and is not empty"):
        convert(theirs("moe")[1], tmp_path / "new", "pt")
    assert snapshot(tmp_path) == before


def test_only_model_folders_are_replaced(theirs: Callable, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match=r"has no config\.json and is not replaced"):
        convert(theirs("dense")[1], tmp_path / "thesis", "pt", overwrite=True)
    with pytest.raises(StorageError, match="exists and is not empty"):
        convert(theirs("dense")[1], tmp_path / "file", "pt")
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    convert(theirs("dense")[1], tmp_path / "empty", "pt")
    assert open_folder(tmp_path / "empty").layout.name == "pt"


_MEASURE = """
import sys
from ernie45.checkpoint import convert
def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
convert(sys.argv[1], sys.argv[2], sys.argv[3])
assert "torch" not in sys.modules
print(resident("VmHWM") - before)
"""


def test_memory_of_a_conversion_is_a_few_tensors(theirs: Callable, tmp_path: Path) -> None:
    """A model of 170 MB whose largest tensors are 8 MB, in a process of its own, there and back."""
    config = replace(
        TEXT, hidden_size=512, intermediate_size=2048, num_layers=10, vocab_size=4096, expert_pools=(), num_mtp_layers=0
    )
    tensors = {slot.tensor: torch.ones(slot.shape) for slot in expand(find_layout("pt"), config, inventory(config))}
    size, largest = sum(tensor.nbytes for tensor in tensors.values()), max(tensor.nbytes for tensor in tensors.values())
    (tmp_path / "pt").mkdir()
    save_file(tensors, tmp_path / "pt" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "pt" / "config.json").write_text(json.dumps(config_to_json(config, "pt", dtype="float32")))
    for source, target in (("pt", "paddle"), ("paddle", "pt")):
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / source), str(tmp_path / f"{target} new"), target]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert size > 120_000_000
        assert peak < 5 * largest < size / 2, (peak, largest, size)
        (tmp_path / f"{target} new").rename(tmp_path / "paddle") if target == "paddle" else None
