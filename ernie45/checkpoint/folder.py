"""A model folder as found on disk: its configuration, its layout, and where each tensor lies.

Knows nothing about torch; opening a folder reads headers only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ernie45.checkpoint.check import check_tensors
from ernie45.checkpoint.inventory import Inventory, inventory
from ernie45.checkpoint.layouts import detect_layout
from ernie45.checkpoint.layouts.table import Layout, Slot, expand
from ernie45.checkpoint.tensor_file import FileTensor, read_header
from ernie45.config.errors import CheckpointError
from ernie45.config.model import ModelConfig
from ernie45.config.model_json import config_from_json
from ernie45.config.presets import TINY_FOLDER

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """An opened folder whose tensors fit its configuration: every slot has its tensor, with the slot's shape."""

    path: Path
    config: ModelConfig
    config_json: dict[str, Any]
    layout: Layout
    parameters: Inventory
    slots: tuple[Slot, ...]
    tensors: dict[str, FileTensor]

    @property
    def dtype(self) -> str:
        """The type of the weights, in safetensors' spelling: that of the embedding (routers may differ)."""
        slot = next(slot for slot in self.slots if slot.parameter == "embed_tokens.weight")
        return self.tensors[slot.tensor].dtype


def resolve_model(name_or_path: str | Path) -> Path:
    """The folder of a model: `tiny` is the one shipped in the package, anything else is a path.

    CheckpointError if there is no such folder or it has no config.json.
    """
    path = TINY_FOLDER if str(name_or_path) == "tiny" else Path(name_or_path).expanduser()
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"model folder ({path}) {kind}; give a folder with {CONFIG_FILE} and *.safetensors, or `tiny`")
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"model folder ({path}) has no {CONFIG_FILE}; give the folder that has it, or `tiny`")
    return path


def read_config(name_or_path: str | Path) -> ModelConfig:
    """The configuration of a model folder or of `tiny`. CheckpointError as in `resolve_model` and `config_from_json`."""
    return config_from_json(read_config_json(resolve_model(name_or_path)))


def read_config_json(path: Path) -> dict[str, Any]:
    """The content of the folder's config.json as it is."""
    return _read_json(path / CONFIG_FILE)


def open_folder(name_or_path: str | Path) -> ModelFolder:
    """Open a model folder and check names and shapes of all its tensors against its configuration.

    CheckpointError for a folder, file, configuration or tensor list that is missing, damaged or of another model.
    """
    path = resolve_model(name_or_path)
    config_json = read_config_json(path)
    config = config_from_json(config_json)
    found = _list_tensors(path)
    layout = detect_layout(found, is_native="text_config" in config_json)
    found = _apply_aliases(found, layout)
    if layout.name != "paddle" and not any("mtp_" in name for name in found):
        config = replace(config, num_mtp_layers=0)  # transformers drops the module when it saves, but not the count
    parameters = inventory(config)
    slots = expand(layout, config, parameters)
    slots, tensors = check_tensors(path, slots, found, config)
    return ModelFolder(
        path=path, config=config, config_json=config_json, layout=layout, parameters=parameters, slots=slots, tensors=tensors
    )


def _list_tensors(path: Path) -> dict[str, FileTensor]:
    index = path / INDEX_FILE
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise CheckpointError(f"{index} has no weight_map; download or convert the model again")
        files = sorted(set(map(str, weight_map.values())))
    else:
        files = [WEIGHTS_FILE] if (path / WEIGHTS_FILE).is_file() else sorted(file.name for file in path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"model folder ({path}) has no *.safetensors file; download the model's weights into it")
    tensors: dict[str, FileTensor] = {}
    for file in files:
        for name, tensor in read_header(path / file).items():
            if name in tensors:
                raise CheckpointError(f"{name} is both in {tensors[name].file.name} and in {file} of {path}; remove one file")
            tensors[name] = tensor
    return tensors


def _apply_aliases(found: dict[str, FileTensor], layout: Layout) -> dict[str, FileTensor]:
    renamed = {}
    for name, tensor in found.items():
        alias = next(((old, new) for old, new in layout.aliases if name.startswith(old)), None)
        renamed[alias[1] + name.removeprefix(alias[0]) if alias else name] = tensor
    return renamed


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); check the model folder") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); download or convert the model again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} must hold a JSON object; download or convert the model again")
    return data
