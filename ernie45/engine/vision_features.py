"""Encoded pictures of a step, and a bounded memory of recent ones, by content.

Knows nothing about who asks; equal content has equal features, whoever's request it is in.
"""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ernie45.engine.request import MediaUnit, Request
from ernie45.model.batch import VisionBatch
from ernie45.model.multimodal import ErnieModel


class VisionFeatures:
    """Least-recently-used memory of features, in tokens (rows). What one step needs is never dropped within the step."""

    def __init__(self, model: ErnieModel, max_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._kept: OrderedDict[tuple, Tensor] = OrderedDict()
        self._num_kept_tokens = 0
        self.num_encoded_units = 0
        self.num_hits = 0

    def __contains__(self, key: tuple) -> bool:
        """Whether the unit with this key need not be encoded."""
        return key in self._kept

    def clear(self) -> None:
        """Forget everything: the model's weights have changed."""
        self._kept.clear()
        self._num_kept_tokens = 0

    def get(self, wanted: Iterable[tuple[Request, MediaUnit]]) -> dict[tuple, Tensor]:
        """Features [R, D] of each unit by key. All units that are not in memory are encoded in one call, each once."""
        found: dict[tuple, Tensor] = {}
        missing: dict[tuple, tuple[Request, MediaUnit]] = {}
        for request, unit in wanted:
            kept = self._kept.get(unit.key)
            if kept is not None:
                self._kept.move_to_end(unit.key)
                found[unit.key] = kept
                self.num_hits += 1
            else:
                missing[unit.key] = (request, unit)
        if missing:
            found |= self._encode(missing)
        return found

    def _encode(self, missing: dict[tuple, tuple[Request, MediaUnit]]) -> dict[tuple, Tensor]:
        units = [unit for _, unit in missing.values()]
        patches = [request.inputs.patches[unit.patch_start : unit.patch_end] for request, unit in missing.values()]
        vision = VisionBatch(
            patches_PC=torch.from_numpy(np.concatenate(patches)).to(self._model.device),
            grids=tuple(unit.grid for unit in units),
        )
        features_RD = self._model.encode_vision(vision)
        parts = features_RD.split([unit.end - unit.start for unit in units])
        self.num_encoded_units += len(units)
        encoded = {unit.key: part for unit, part in zip(units, parts, strict=True)}
        for key, part in encoded.items():
            self._keep(key, part)
        return encoded

    def _keep(self, key: tuple, features_RD: Tensor) -> None:
        if len(features_RD) > self._max_tokens:
            return
        # A copy: a part of a larger result would keep all of it alive.
        self._kept[key] = features_RD.clone()
        self._num_kept_tokens += len(features_RD)
        while self._num_kept_tokens > self._max_tokens:
            _, dropped_RD = self._kept.popitem(last=False)
            self._num_kept_tokens -= len(dropped_RD)
