"""How many KV pages an engine gets.

Knows nothing about what they will hold.
"""

from pathlib import Path

import torch

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.model import ModelConfig
from ernie45.model.cache import PagedKVCache

# Shares of the memory that is free once the weights are loaded. The rest is for activations, and on a CPU for others.
_SHARE = {"cpu": 0.25, "cuda": 0.8}
_GROUP = Path("/sys/fs/cgroup")


def context_length(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of prompt and answer together, as configured. ConfigError if it is more than the model was made for."""
    longest = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len ({config.max_model_len}) must be at most the model's max_position_embeddings ({longest}); lower it"
        )
    return config.max_model_len or longest


def num_pages(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages by number, by memory, or by need and free memory. ConfigError if not even one fits."""
    if config.num_pages is not None:
        return config.num_pages
    page_bytes = PagedKVCache.bytes_per_page(model, config.page_size, dtype, with_mtp=config.speculation.method == "mtp")
    if config.kv_memory_bytes is not None:
        pages = config.kv_memory_bytes // page_bytes
    else:
        needed = config.max_num_seqs * -(-context_length(config, model) // config.page_size)
        pages = min(needed, _bytes_for_pages(config) // page_bytes)
    if pages < 1 and config.memory_share is not None and config.kv_memory_bytes is None:
        raise ConfigError(
            f"memory_share ({config.memory_share}) leaves no room for one page of {page_bytes} bytes beside what is in use; "
            "raise it, or end other programs on this device"
        )
    if pages < 1:
        raise ConfigError(
            f"kv_memory_bytes ({config.kv_memory_bytes}) must hold at least one page of {page_bytes} bytes; "
            "give more memory or a smaller page_size"
        )
    return pages


def _bytes_for_pages(config: EngineConfig) -> int:
    """What the KV cache may have at most, if nobody gave it a size."""
    free = free_bytes(config.device)
    if config.memory_share is None:
        return int(_SHARE.get(_kind(config), 0.25) * free)
    total = total_bytes(config.device)
    return int(config.memory_share * total) - (total - free)


def overlaps(config: EngineConfig) -> bool:
    """Whether the next step is planned while one runs: as configured, else on a GPU without speculation."""
    if config.overlap is None:
        return config.speculation.method == "none" and _kind(config) == "cuda"
    return config.overlap


def free_bytes(device: str) -> int:
    """Memory that can still be allocated, in bytes: of the card, or of this machine within its control group."""
    if _kind_of(device) == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return min(_in_machine("MemAvailable"), _available_in_group())


def total_bytes(device: str) -> int:
    """All memory, used or not: of the card, or of this machine within its control group."""
    if _kind_of(device) == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[1]
    limit = _GROUP / "memory.max"
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(_in_machine("MemTotal"), int(text) if text.isdigit() else 1 << 62)


def _kind(config: EngineConfig) -> str:
    return _kind_of(config.device)


def _kind_of(device: str) -> str:
    return torch.device(device).type


def _in_machine(name: str) -> int:
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 4 << 30  # no such file outside Linux: a size that any machine for this has


def _available_in_group() -> int:
    limit, used = _GROUP / "memory.max", _GROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        return max(int(text) - int(used.read_text()), 0)
    return 1 << 62
