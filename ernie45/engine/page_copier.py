"""Makes the copies between the tiers of the prefix cache that the scheduler has planned.

Knows nothing about why a page moves. Copies run in the order of the plan and of the steps around them: on a GPU all of them
are on the stream of the steps.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ernie45 import __version__
from ernie45.config.errors import ConfigError
from ernie45.engine.disk_pages import DiskPages
from ernie45.engine.tiers import PageCopy
from ernie45.model.cache import PagedKVCache
from ernie45.model.multimodal import ErnieModel

_NUM_SAMPLED = 4096
_NUM_SUMMED = 1 << 20
_BITS_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    def run(self, copies: Sequence[PageCopy], patiently: bool = False) -> None:
        """Make them, in order. patiently: wait for a disk that cannot follow, else what it has no time for is not kept."""
        for copy in copies:
            if patiently and self._disk is not None and not self._disk.has_room:
                self._disk.drain()
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
def fingerprint(model: ErnieModel, cache: PagedKVCache) -> bytes:
    """What pages on disk depend on beside their keys: this version, the config, the kind of device, the shape and dtype of a
    page, and all weights.

    Of the weights every value counts: sums over the bits of each run of values, and a sample of the values themselves. It takes
    the time to read them once from memory. A change is missed only if within each run the bits add up to the same sum, as when
    two values change places, and no sampled value is another one.
    """
    page = (cache.keys_LNSJK.shape[0], *cache.keys_LNSJK.shape[2:], cache.keys_LNSJK.dtype)
    digest = blake2b(repr((__version__, model.config, str(model.dtype), model.device.type, page)).encode(), digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        runs = flat.view(_BITS_OF[flat.element_size()]).split(_NUM_SUMMED)
        sums = torch.stack([run.sum(dtype=torch.int64) for run in runs])
        sample = flat[:: max(len(flat) // _NUM_SAMPLED, 1)].to(torch.float32)
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        for found in (sums, sample):
            digest.update(found.cpu().contiguous().numpy().tobytes())
    return digest.digest()
