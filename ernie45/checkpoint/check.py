"""Whether the tensors of a folder are exactly those of its configuration; if not, one line that lists them.

Knows nothing about torch or tensor data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ernie45.checkpoint.layouts.table import Slot
from ernie45.checkpoint.tensor_file import FileTensor
from ernie45.config.errors import CheckpointError
from ernie45.config.model import ModelConfig

_MAX_LISTED = 8
_HEAD = "lm_head.weight"


def check_tensors(
    path: Path, slots: Sequence[Slot], found: Mapping[str, FileTensor], config: ModelConfig
) -> tuple[tuple[Slot, ...], dict[str, FileTensor]]:
    """The slots as the files have them (`either_way` settled) and the tensors they use.

    An `lm_head.weight` of a tied model, which old files have beside the embedding, is left out if it has the embedding's
    shape. CheckpointError that lists missing, surplus and misshapen tensors.
    """
    settled = tuple(_settle(slot, found) for slot in slots)
    expected = {slot.tensor: slot.shape for slot in settled}
    tensors = dict(found)
    if config.tie_word_embeddings and _HEAD in tensors and set(tensors[_HEAD].shape) == {config.vocab_size, config.hidden_size}:
        del tensors[_HEAD]
    missing = [name for name in expected if name not in tensors]
    surplus = sorted(name for name in tensors if name not in expected)
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or surplus or misshapen:
        parts = [
            f"{len(names)} {kind}: {_list(names)}"
            for kind, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
            if names
        ]
        raise CheckpointError(
            f"tensors in {path} do not fit its config.json ({'; '.join(parts)}); take config.json and weights of the same model"
        )
    return settled, tensors


def _settle(slot: Slot, found: Mapping[str, FileTensor]) -> Slot:
    if slot.either_way and slot.tensor in found and found[slot.tensor].shape == slot.shape[::-1]:
        return replace(slot, shape=slot.shape[::-1], transpose=not slot.transpose)
    return slot


def _list(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
