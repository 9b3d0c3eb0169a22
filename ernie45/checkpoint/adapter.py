"""A LoRA adapter's folder, made ready for a model in memory.

Knows nothing about training, or about which requests will use it.
"""

from pathlib import Path

from torch import Tensor

from ernie45.checkpoint.adapter_files import MERGE, WEIGHTS_FILE, read_adapter
from ernie45.checkpoint.adapter_targets import bind
from ernie45.config.errors import CheckpointError
from ernie45.model.lora import LoraAdapter, LowRank
from ernie45.model.multimodal import ErnieModel


def load_adapter(path: str | Path, model: ErnieModel) -> LoraAdapter:
    """The LoRA adapter of a folder that PEFT or `ernie45 train` has written, on the model's device and in its dtype.

    It may change every projection, the experts of every pool, the tower, the resampler and lm_head. CheckpointError if the
    folder is damaged, made for another model, or asks for more than that.
    """
    folder = Path(path).expanduser()
    weights = read_adapter(folder, model.config)
    for name, tensor in weights.own.items():
        ours = model.embed_tokens.weight if "embed_tokens" in name else model.head_weight
        check_own(folder, name, tensor, ours)
    parts = {
        name: LowRank(*(x.to(device=model.device, dtype=model.dtype) for x in pair)) for name, pair in weights.parts.items()
    }
    pairs, experts = bind(parts, model)
    return LoraAdapter(pairs, weights.content_hash, experts)


def check_own(folder: Path, name: str, tensor: Tensor, ours: Tensor) -> None:
    """CheckpointError unless a tensor of the file is the model's own one."""
    # The model may be loaded in a shorter type than the file has, or the other way round.
    dtype = min(tensor.dtype, ours.dtype, key=lambda dtype: dtype.itemsize)
    if tensor.shape != ours.shape or not tensor.to(dtype).equal(ours.detach().cpu().to(dtype)):
        raise CheckpointError(f"tensor {name} in {folder / WEIGHTS_FILE} differs from the model's own; {MERGE}")
