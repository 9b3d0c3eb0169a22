"""Loading and saving: equal logits with transformers both ways, types, old files, and memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ernie45.checkpoint import load_model, read_config, save_model
from ernie45.config.errors import CheckpointError, ConfigError, StorageError
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from tests.checkpoint.conftest import FAMILIES, assert_identical, read_tensors, snapshot

GRID = (1, 4, 2)  # patches; 2 x 1 tokens
TEXT_BEFORE, TEXT_AFTER, NUM_VISUAL = 4, 5, 2


def sequence(multimodal: bool) -> ModelInput:
    """Text, and for multimodal models one picture with its markers."""
    rng = np.random.default_rng(3)
    before, after = rng.integers(3, 100, TEXT_BEFORE), rng.integers(3, 100, TEXT_AFTER)
    if not multimodal:
        ids = np.concatenate([before, after])
        positions = np.repeat(np.arange(len(ids))[:, None], 3, axis=1)
        return ModelInput(
            token_ids=ids,
            is_vision=np.zeros(len(ids), bool),
            positions=positions,
            patches=np.zeros((0, 12), np.uint8),
            next_position=len(ids),
        )
    ids = np.concatenate([before, [121, 120, 120, 122], after])
    first = TEXT_BEFORE + 1
    # One column of two rows: height runs, time and width stand; text goes on after the larger side.
    picture = [[first, first, first], [first, first + 1, first]]
    rest = [[first + 2 + i] * 3 for i in range(1 + TEXT_AFTER)]
    positions = np.array([[i] * 3 for i in range(first)] + picture + rest)
    return ModelInput(
        token_ids=ids,
        is_vision=ids >= 120,
        positions=positions,
        patches=rng.integers(0, 256, (8, 12), dtype=np.uint8),
        media=(MediaItem(kind="image", grid=GRID, offset=first, length=NUM_VISUAL, content_hash="00"),),
        next_position=int(positions.max()) + 1,
    )


def our_logits(model: ErnieModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(pack([sequence(model.config.is_multimodal)])).hidden_TD)


def their_logits(model: Any) -> torch.Tensor:
    item = sequence(hasattr(model.config, "vision_config"))
    arguments: dict[str, torch.Tensor] = {"input_ids": torch.from_numpy(item.token_ids)[None]}
    if item.media:
        mean, std = (
            torch.tensor(values).repeat_interleave(4)
            for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        )
        arguments |= {
            "pixel_values": (torch.from_numpy(item.patches).float() / 255 - mean) / std,
            "image_grid_thw": torch.tensor([GRID]),
            "mm_token_type_ids": torch.from_numpy((item.token_ids == 120).astype(np.int64))[None],
            "moe_mm_token_type_ids": torch.from_numpy(item.is_vision.astype(np.int64))[None],
        }
    with torch.no_grad():
        return model(**arguments).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_we_load_with_equal_logits(theirs: Callable, family: str) -> None:
    model, folder = theirs(family)
    expected = their_logits(model)
    assert expected.std() > 0.1, "the reference must say something"
    torch.testing.assert_close(our_logits(load_model(folder)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_write_transformers_loads_with_equal_logits(theirs: Callable, family: str, tmp_path: Path) -> None:
    model, folder = theirs(family)
    ours = load_model(folder)
    save_model(ours, tmp_path / "ours", "native")
    assert_identical(read_tensors(tmp_path / "ours"), read_tensors(folder))
    back, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(their_logits(back.eval()), our_logits(ours), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["pt", "native", "paddle"])
@pytest.mark.parametrize("family", ["vl", "vl untied", "moe untied", "dense"])
def test_every_layout_comes_back(theirs: Callable, family: str, layout, tmp_path: Path) -> None:
    model = load_model(theirs(family)[1])
    save_model(model, tmp_path / "copy", layout, max_shard_bytes=20_000)
    back = load_model(tmp_path / "copy")
    assert back.config == model.config
    assert_identical(dict(back.state_dict()), dict(model.state_dict()))
    assert read_config(tmp_path / "copy") == model.config


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a one-file folder."""
    tensors = read_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_head_beside_a_tied_embedding_is_ignored(saved: Callable) -> None:
    """Old files repeat the embedding; what they say under that name is never used."""
    folder = saved("dense")
    expected = our_logits(load_model(folder))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(128, 32)}))
    assert torch.equal(our_logits(load_model(folder)), expected)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(9, 32)}))
    with pytest.raises(CheckpointError, match=r"1 surplus: lm_head\.weight"):
        load_model(folder)


def test_the_resampler_may_stand_without_a_prefix_in_paddle_files(theirs: Callable, tmp_path: Path) -> None:
    model = load_model(theirs("vl")[1])
    save_model(model, tmp_path / "paddle", "paddle")

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "resampler" in name]:
            tensors[name.removeprefix("ernie.")] = tensors.pop(name)

    rewrite(tmp_path / "paddle", strip)
    assert_identical(dict(load_model(tmp_path / "paddle").state_dict()), dict(model.state_dict()))


def test_the_video_placeholder_comes_from_the_tokenizer(theirs: Callable, tmp_path: Path) -> None:
    """Only the native layout names it; a converted model has it from the folder that its tokenizer came from."""
    save_model(load_model(theirs("vl")[1]), tmp_path / "new", "native", processor_files_from=theirs("vl")[1])
    assert json.loads((tmp_path / "new" / "config.json").read_text())["video_token_id"] == 127


def test_types(theirs: Callable, saved: Callable) -> None:
    """Default: the files' own. Routers stay fp32 and come from the file without a detour through bf16."""
    folder = saved("vl")
    routers = [name for name in load_model(folder).state_dict() if ".router." in name]
    assert len(routers) == 8, "two layers, two pools, weight and bias"
    exact = load_model(folder)
    rounded = load_model(folder, dtype="bf16")
    for name, tensor in rounded.state_dict().items():
        wanted = exact.state_dict()[name]
        assert torch.equal(tensor, wanted if name in routers else wanted.bfloat16()), name
    rewrite(folder, lambda tensors: tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"dtype \(int8\).*fp32.*bf16"):
        load_model(folder, dtype="int8")


def test_written_files_are_what_the_safetensors_package_reads(theirs: Callable, tmp_path: Path) -> None:
    model = load_model(theirs("vl")[1], dtype="bf16")
    save_model(model, tmp_path / "many", "pt", max_shard_bytes=10_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 5
    total = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            sizes = {name: opened.get_tensor(name).nbytes for name in opened.keys()}  # noqa: SIM118
        assert sum(sizes.values()) <= 10_000 or len(sizes) == 1
        assert dict.fromkeys(sizes, file.name).items() <= index["weight_map"].items()
        total += sum(sizes.values())
    assert index["metadata"]["total_size"] == total
    assert json.loads((tmp_path / "many" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_processor_files_are_copied_and_nothing_is_overwritten(theirs: Callable, tmp_path: Path) -> None:
    folder = theirs("dense")[1]
    (tmp_path / "origin").mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / "origin" / name).write_text(name)
    model = load_model(folder)
    (tmp_path / "origin" / "config.json").write_text("{}")
    save_model(model, tmp_path / "new", processor_files_from=tmp_path / "origin")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match="exists and is not empty"):
        save_model(model, tmp_path / "new")
    assert snapshot(tmp_path) == before
    model.norm.weight.data.fill_(3)
    save_model(model, tmp_path / "new", overwrite=True)
    assert torch.equal(load_model(tmp_path / "new").norm.weight, model.norm.weight)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


_MEASURE = """
import resource, sys
from ernie45.checkpoint import load_model
from ernie45.checkpoint.folder import open_folder

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

load_model(sys.argv[1])  # what the libraries take on first use
open("/proc/self/clear_refs", "w").write("5")  # restart the peak from here
before = resident("VmRSS")
model = load_model(sys.argv[2], dtype=sys.argv[3])
print(resident("VmHWM") - before, sum(t.nbytes for t in model.state_dict().values()))
"""


@pytest.mark.parametrize(("layout", "dtype"), [("pt", "fp32"), ("paddle", "bf16")])
def test_peak_memory_is_the_model_and_one_tensor(theirs: Callable, tmp_path: Path, layout, dtype: str) -> None:
    """A model of 180 MB with a largest tensor of 50 MB, loaded in a process of its own.

    A reader that held all tensors, or mapped the files, would need twice the model. Worst case: transposed and converted,
    where every thread holds a chunk of 4 MB.
    """
    config = load_model(theirs("dense")[1]).config
    config = replace(config, hidden_size=512, vocab_size=25_000, intermediate_size=2048, num_layers=10)
    model = ErnieModel(config)
    save_model(model, tmp_path / "large", layout)
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    wanted = torch.float32 if dtype == "fp32" else torch.bfloat16
    expected = {name: tensor.to(wanted) for name, tensor in model.state_dict().items()}
    assert_identical(dict(load_model(tmp_path / "large", dtype=dtype).state_dict()), expected)
    del model, expected
    command = [sys.executable, "-c", _MEASURE, str(theirs("dense")[1]), str(tmp_path / "large"), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size = map(int, done.stdout.split())
    assert size > 80_000_000, "large enough to stand out of the noise"
    assert size * 0.9 < peak < size + largest / 2, (peak, size, largest)


@pytest.mark.parametrize("device", ["gpu", "cuda:63"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device \('{device}'\) cannot be used here: .*; choose cpu"):
        load_model("tiny", device=device)
