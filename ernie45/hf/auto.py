"""Puts this package's classes behind transformers' Auto classes, for ERNIE 4.5 models only.

Knows nothing about what the classes do.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ernie45.checkpoint import resolve_model
from ernie45.hf.model import ErnieForCausalLM
from ernie45.hf.processor import ErnieProcessor, ErnieTokenizer

# Where a model comes from, if its name is one of Hugging Face's hub.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# Other formats of the same weights, and code, which is never run.
_NOT_NEEDED = ["*.py", "*.bin", "*.pdparams", "*.gguf", "*.pth"]


def install() -> None:
    """AutoModelForCausalLM, AutoProcessor and AutoTokenizer ask `ernie_folder` first. Once is enough, twice changes nothing."""
    _answer(transformers.AutoModelForCausalLM, ErnieForCausalLM.from_pretrained)
    _answer(transformers.AutoProcessor, ErnieProcessor.from_pretrained)
    _answer(transformers.AutoTokenizer, ErnieTokenizer.from_pretrained)


def _answer(auto: Any, ours: Callable[..., Any]) -> None:
    theirs = auto.from_pretrained
    if getattr(theirs.__func__, "answers_for_ernie45", False):
        return

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        folder = ernie_folder(pretrained_model_name_or_path, **hub)
        if folder is None:
            return theirs.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)
        return ours(folder, *args, **{name: value for name, value in kwargs.items() if name not in hub})

    from_pretrained.__doc__ = theirs.__doc__
    from_pretrained.answers_for_ernie45 = True  # type: ignore[attr-defined]
    auto.from_pretrained = classmethod(from_pretrained)


def ernie_folder(name_or_path: Any, **hub: Any) -> Path | None:
    """The folder of an ERNIE 4.5 model, fetched from the hub if it is a name there; None if it is something else.

    hub: where and how to fetch, as transformers' own options.
    """
    path = Path(str(name_or_path)).expanduser()
    if path.is_dir() or str(name_or_path) == "tiny":
        folder = path if path.is_dir() else resolve_model("tiny")
        return folder if _is_ernie(folder / "config.json") else None
    try:
        config = Path(hf_hub_download(str(name_or_path), "config.json", **hub))
        if not _is_ernie(config):
            return None
        return Path(snapshot_download(str(name_or_path), ignore_patterns=_NOT_NEEDED, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None  # transformers says best what is wrong with a name


def _is_ernie(file: Path) -> bool:
    """Whether a config.json says so. What is wrong with the rest of it, `checkpoint` tells."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        names = [data.get("model_type"), *(data.get("architectures") or ())]
    except (OSError, ValueError, AttributeError):
        return False
    return any(str(name).lower().replace("_", "").startswith("ernie45") for name in names)
