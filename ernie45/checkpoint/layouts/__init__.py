"""Checkpoint layouts by name, and which one a list of tensor names has; imports no torch."""

from collections.abc import Iterable
from importlib import import_module

from ernie45.checkpoint.layouts.table import Layout
from ernie45.config.errors import CheckpointError

LAYOUTS = {
    "pt": "ernie45.checkpoint.layouts.pt:LAYOUT",
    "native": "ernie45.checkpoint.layouts.native:LAYOUT",
    "paddle": "ernie45.checkpoint.layouts.paddle:LAYOUT",
}


def find_layout(name: str) -> Layout:
    """The layout of that name; CheckpointError with the known names otherwise."""
    if name not in LAYOUTS:
        raise CheckpointError(f"layout ({name!r}) must be one of {', '.join(LAYOUTS)}; choose one of them")
    module, _, attribute = LAYOUTS[name].partition(":")
    return getattr(import_module(module), attribute)


def detect_layout(names: Iterable[str], *, is_native: bool) -> Layout:
    """The layout whose prefixes the tensors carry. `is_native`: config.json is that of transformers' native class.

    The names of native and -PT text models are the same, so there `is_native` decides nothing that matters.
    """
    names = list(names)
    if any(name.startswith("ernie.") for name in names):
        return find_layout("paddle")
    if any(name.startswith("model.vision_model.") for name in names):
        return find_layout("native")
    return find_layout("native" if is_native and not any(name.startswith("vision_model.") for name in names) else "pt")
