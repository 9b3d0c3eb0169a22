"""The LoRA adapters of an engine by name, and which rows of a step each of them serves.

Knows nothing about what an adapter adds (`model.lora`) or how its files look (`checkpoint.adapter`).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ernie45.checkpoint.adapter import load_adapter
from ernie45.config.errors import CheckpointError, ConfigError, RequestError
from ernie45.model.lora import AdapterRows, LoraAdapter
from ernie45.model.multimodal import ErnieModel


class Adapters:
    """Adapters of one model. One can be added while requests run; a name keeps its adapter for good, unless it was `put`."""

    def __init__(self, model: ErnieModel, folders: Iterable[tuple[str, str]] = ()) -> None:
        self._model = model
        self._by_name: dict[str, LoraAdapter] = {}
        for name, folder in folders:
            self.add(name, folder)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def add(self, name: str, folder: str | Path) -> None:
        """Load an adapter. ConfigError for a name in use; CheckpointError as in `load_adapter`, and for one of the tower."""
        if not name or name in self._by_name:
            raise ConfigError(f"adapter name ({name!r}) must be new and not empty; choose another")
        adapter = load_adapter(folder, self._model)
        if self._changes_sight(adapter):
            raise CheckpointError(
                f"adapter ({folder}) changes the vision tower or the resampler, which all requests share; merge it into a "
                f"model of its own: ernie45 convert MODEL DST --merge {folder}"
            )
        self._by_name[name] = adapter

    def put(self, name: str, adapter: LoraAdapter) -> None:
        """Set an adapter that is at hand, in the place of one of this name; what caches hold under it must be dropped.

        ConfigError for one of the tower.
        """
        if self._changes_sight(adapter):
            raise ConfigError(
                "lora.targets must leave out vision_model and resampler_model where the engine runs the adapter: all requests "
                "share their features"
            )
        self._by_name[name] = adapter

    def _changes_sight(self, adapter: LoraAdapter) -> bool:
        """A picture is encoded once for all requests that show it, whatever their adapter."""
        eyes = [part for part in (self._model.vision_model, self._model.resampler_model) if part is not None]
        return any(module in adapter.pairs for part in eyes for module in part.modules())

    def get(self, name: str) -> LoraAdapter:
        """RequestError that lists the known names for an unknown one."""
        adapter = self._by_name.get(name)
        if adapter is None:
            known = ", ".join(map(repr, self._by_name)) or "none is loaded"
            raise RequestError(f"adapter ({name!r}) must be one of those loaded ({known}); name one or leave it out")
        return adapter

    def rows(self, runs: Iterable[tuple[str | None, int]], device: torch.device) -> tuple[AdapterRows, ...]:
        """For runs of rows in the order of a step (adapter or None, number of rows): each adapter with its rows.

        Nothing, and no work, when none is loaded.
        """
        if not self._by_name:
            return ()
        start, spans = 0, dict[str, list[np.ndarray]]()
        for name, count in runs:
            if name is not None and count:
                spans.setdefault(name, []).append(np.arange(start, start + count))
            start += count
        found = []
        for name, parts in spans.items():
            rows = np.concatenate(parts)
            index_R = None if len(rows) == start else torch.from_numpy(rows).to(device, non_blocking=True)
            found.append(AdapterRows(self._by_name[name], index_R))
        return tuple(found)
