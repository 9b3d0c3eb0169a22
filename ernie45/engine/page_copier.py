"""Makes the copies between the tiers of the prefix cache that the scheduler has planned.

Knows nothing about why a page moves. Copies run in the order of the plan and of the steps around them: on a GPU all of them
are on the stream of the steps.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ernie45.config.errors import ConfigError
from ernie45.engine.disk_pages import DiskPages
from ernie45.engine.tiers import PageCopy
from ernie45.model.cache import PagedKVCache
from ernie45.model.multimodal import ErnieModel

_NUM_SAMPLED = 4096


class PageCopier:
    """Host memory for `num_slots` pages beside a KV cache, and the way to disk."""

    def __init__(self, cache: PagedKVCache, num_slots: int, disk: DiskPages | None) -> None:
        self._cache = cache
        self._disk = disk
        pages = cache.keys_LNSJK
        self._on_gpu = pages.device.type == "cuda"
        shape = (num_slots, 2, pages.shape[0], *pages.shape[2:])
        self._slots = torch.empty(shape, dtype=pages.dtype, pin_memory=self._on_gpu and num_slots > 0)
        self._tensors = (cache.keys_LNSJK, cache.values_LNSJK)

    @torch.inference_mode()
    def run(self, copies: Sequence[PageCopy]) -> None:
        """Make them, in order."""
        for copy in copies:
            match copy.kind:
                case "store":
                    for part, pages in zip(self._slots[copy.slot], self._tensors, strict=True):
                        part.copy_(pages[:, copy.page], non_blocking=True)
                case "load":
                    self._fill(copy.page, self._slots[copy.slot])
                case "restore":
                    data = torch.frombuffer(bytearray(copy.data), dtype=torch.uint8).view(self._slots.dtype)
                    self._fill(copy.page, data.view(self._slots.shape[1:]))
                case "spill":
                    if self._on_gpu:
                        torch.cuda.current_stream().synchronize()  # what was stored there may still be on its way
                    self._to_disk(copy.key, self._slots[copy.slot])
                case "archive":
                    self._to_disk(copy.key, torch.stack([pages[:, copy.page] for pages in self._tensors]))

    def _fill(self, page: int, content: Tensor) -> None:
        for part, pages in zip(content, self._tensors, strict=True):
            pages[:, page].copy_(part, non_blocking=True)

    def _to_disk(self, key: bytes, content: Tensor) -> None:
        assert self._disk is not None
        self._disk.write(key, content.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def num_slots(host_cache_bytes: int, page_bytes: int) -> int:
    """Pages in host memory. ConfigError if the given bytes hold not even one."""
    if host_cache_bytes and host_cache_bytes < page_bytes:
        raise ConfigError(
            f"host_cache_bytes ({host_cache_bytes}) must hold at least one page of {page_bytes} bytes; give more or use 0"
        )
    return host_cache_bytes // page_bytes


@torch.inference_mode()
def fingerprint(model: ErnieModel, page_size: int) -> bytes:
    """What pages on disk depend on beside their keys: config, dtype, page size, kind of device, and a sample of every weight.

    Sampled evenly, as hashing 56 GB of weights would take a minute: another checkpoint differs nearly everywhere.
    """
    digest = blake2b(repr((model.config, str(model.dtype), page_size, model.device.type)).encode(), digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(len(flat) // _NUM_SAMPLED, 1)].to(torch.float32).cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + sample.numpy().tobytes())
    return digest.digest()
