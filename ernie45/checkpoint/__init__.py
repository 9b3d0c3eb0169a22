"""Checkpoints: model folders read, written and converted in the three layouts.

Importing this package imports no torch; the functions that need it load it when they are taken.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ernie45.checkpoint.convert import convert
from ernie45.checkpoint.folder import open_folder, read_config, resolve_model

if TYPE_CHECKING:
    from ernie45.checkpoint.reader import load_model
    from ernie45.checkpoint.saver import save_model

__all__ = ["convert", "load_model", "open_folder", "read_config", "resolve_model", "save_model"]

_NEED_TORCH = {"load_model": "ernie45.checkpoint.reader", "save_model": "ernie45.checkpoint.saver"}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
