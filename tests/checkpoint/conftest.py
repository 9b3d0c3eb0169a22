"""Tiny random models of every family, saved by transformers; and what tests need to look into files.

Knows nothing about our reader or writer: files are opened with the safetensors package.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

_SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# 12 experts a pool: names sort differently as text (10 before 2) than as numbers.
_EXPERTS = {"moe_num_experts": 12, "moe_k": 2}
_TOKENS = {
    "image_token_id": 120,
    "image_start_token_id": 121,
    "image_end_token_id": 122,
    "video_start_token_id": 123,
    "video_end_token_id": 124,
    "video_token_id": 127,
}
FAMILIES = ("vl", "vl untied", "moe", "moe untied", "dense", "dense untied")


def _build(family: str) -> Any:
    """A transformers model with random weights."""
    import transformers as t

    tied = "untied" not in family
    if family.startswith("dense"):
        return t.Ernie4_5ForCausalLM(t.Ernie4_5Config(**_SMALL, tie_word_embeddings=tied))
    if family.startswith("moe"):
        config = t.Ernie4_5_MoeConfig(**_SMALL, **_EXPERTS, moe_intermediate_size=16, tie_word_embeddings=tied)
        return t.Ernie4_5_MoeForCausalLM(config)
    rope = {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [1, 1, 2]}
    shared = 2 if tied else 0
    text = _SMALL | _EXPERTS | {"moe_intermediate_size": [16, 8], "rope_parameters": rope, "moe_num_shared_experts": shared}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 2}
    config = t.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_TOKENS)
    return t.Ernie4_5_VLMoeForConditionalGeneration(config)


def _randomise(model: torch.nn.Module) -> None:
    """Everything, norms and biases too: what is left at 0 or 1 hides a wrong mapping."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.normal_(0, 0.2, generator=generator)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """theirs("vl") -> (transformers' model in eval mode, the folder it has saved itself to); made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(family: str) -> tuple[Any, Path]:
        if family not in made:
            model = _build(family).eval()
            _randomise(model)
            folder = tmp_path_factory.mktemp(family.replace(" ", "_"))
            model.save_pretrained(folder)
            made[family] = (model, folder)
        return made[family]

    return make


@pytest.fixture
def saved(theirs: Callable, tmp_path: Path) -> Callable[[str], Path]:
    """saved("vl") -> a copy of that folder that the test may damage."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(theirs(family)[1], tmp_path / f"saved {family}"))

    return copy


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name, through the safetensors package."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert name not in found, name
            found[name] = tensor
    return found


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same names, types, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
