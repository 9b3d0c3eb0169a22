"""From a model folder to a model in memory, one tensor at a time, straight into the parameters.

Knows nothing about layouts beyond their slots, or about writing.
"""

import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import cpu_count
from pathlib import Path
from threading import local

import torch
from torch import Tensor, nn

from ernie45.checkpoint.folder import ModelFolder, open_folder
from ernie45.checkpoint.inventory import Inventory
from ernie45.checkpoint.layouts.table import Slot
from ernie45.checkpoint.tensor_file import OpenFiles
from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.model.multimodal import ErnieModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LOADED_DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
# Bytes that one thread holds while it converts or transposes: whole rows, at least one.
CHUNK_BYTES = 4 << 20
_MAX_THREADS = 4
# Tensors from this size on are worth a memory region of their own; a huge page has 2 MB.
_HUGE_BYTES = 4 << 20


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu"
) -> ErnieModel:
    """The model of a folder (any layout) or of `tiny`, as an `ErnieModel` with all parameters read.

    dtype: torch.float32 or torch.bfloat16, also by name ("fp32", "bf16"); default: that of the files. Routers and correction
    biases are fp32 in any case. Memory: the model and a few MB. CheckpointError for anything wrong with the folder,
    ConfigError for a device that is not there.
    """
    folder = open_folder(name_or_path)
    place = _device(device)
    wanted = loaded_dtype(dtype, folder)
    model = ErnieModel(folder.config, dtype=wanted, device="meta")
    _materialise(model, place)
    read_into(folder, stored_tensors(model, folder.parameters))
    return model


def _device(name: str | torch.device) -> torch.device:
    """The device, tried. ConfigError if torch has no such one here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises differs with device and build
        why = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        rule = f"device ({str(name)!r}) cannot be used here: {why}; choose cpu, or install a torch that has it"
        raise ConfigError(rule) from None
    return device


def _materialise(model: nn.Module, device: torch.device) -> None:
    """`to_empty`, but on CPU with large tensors in huge pages: reading into them is three times as fast."""
    if device.type != "cpu":
        model.to_empty(device=device)
        return
    model._apply(_empty_like)  # what to_empty does; it has no public hook for the allocation


def _empty_like(tensor: Tensor) -> Tensor:
    if tensor.nbytes < _HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(tensor, device="cpu")
    region = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=tensor.dtype).view(tensor.shape)  # keeps the region as long as it lives


def loaded_dtype(dtype: torch.dtype | str | None, folder: ModelFolder) -> torch.dtype:
    """The type to load in. CheckpointError for types the model does not run in."""
    if dtype is None:
        stored = DTYPES.get(folder.dtype, torch.float32)
        return stored if stored in _LOADED_DTYPES.values() else torch.float32
    wanted = _LOADED_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in _LOADED_DTYPES.values():
        raise CheckpointError(f"dtype ({dtype}) must be one of {', '.join(_LOADED_DTYPES)}; choose one of them")
    return wanted


def stored_tensors(model: nn.Module, parameters: Inventory) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, detached, sharing memory. They must be those of the inventory."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    theirs, ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, {n: p.shape for n, p in parameters.items()}
    assert theirs == ours, sorted(set(theirs.items()) ^ set(ours.items()))[:6]
    return tensors


@torch.no_grad()
def read_into(folder: ModelFolder, targets: Mapping[str, Tensor]) -> None:
    """Fill `targets` (parameter name -> contiguous tensor on any device) from the folder's files."""
    files = frozenset(tensor.file for tensor in folder.tensors.values())
    num_threads = min(_MAX_THREADS, cpu_count() or 1)
    with OpenFiles(files) as opened, ThreadPoolExecutor(num_threads) as threads:
        jobs = [threads.submit(_read_slot, folder, slot, targets[slot.parameter], opened) for slot in folder.slots]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _read_slot(folder: ModelFolder, slot: Slot, parameter: Tensor, opened: OpenFiles) -> None:
    source = folder.tensors[slot.tensor]
    if source.dtype not in DTYPES:
        raise CheckpointError(
            f"tensor {slot.tensor} in {source.file} has dtype {source.dtype}; it must be one of {', '.join(DTYPES)}: "
            "quantised checkpoints cannot be read, use the bf16 release of the model"
        )
    target = (parameter if slot.expert is None else parameter[slot.expert])[slot.start : slot.stop]
    shape, begin = source.shape, source.begin
    if slot.file_row is not None:
        shape = shape[1:]
        begin += slot.file_row * (source.num_bytes // source.shape[0])
    dtype = DTYPES[source.dtype]
    direct = dtype == target.dtype and not slot.transpose and target.device.type == "cpu" and target.is_contiguous()
    if direct:
        opened.read(source.file, begin, _bytes_of(target))
        return
    row_bytes = source.num_bytes // max(1, source.shape[0]) if slot.file_row is None else dtype.itemsize
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for row in range(0, shape[0], step):
        count = min(step, shape[0] - row)
        chunk = _scratch(count * row_bytes).view(dtype).view(count, *shape[1:])
        opened.read(source.file, begin + row * row_bytes, _bytes_of(chunk))
        if slot.transpose:
            target[:, row : row + count].copy_(chunk.T)
        else:
            target[row : row + count].copy_(chunk)


_kept = local()


def _scratch(num_bytes: int) -> Tensor:
    """Memory for one chunk, kept by the thread: asked for anew each time, the allocator would hold several."""
    if getattr(_kept, "chunk", None) is None or len(_kept.chunk) < num_bytes:
        _kept.chunk = torch.empty(max(num_bytes, CHUNK_BYTES), dtype=torch.uint8)
    return _kept.chunk[:num_bytes]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
