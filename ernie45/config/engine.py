"""How an engine runs a model: budgets, pages, caches, device.

Knows nothing about requests or about the model that will run.
"""

from dataclasses import dataclass
from typing import Literal

from ernie45.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One engine. The defaults suit a CPU and small cards.

    max_num_seqs            sequences in one step at most; more wait, first come first served.
    max_num_batched_tokens  token budget of one step, prompts and generated tokens alike. One image larger than
                            the budget still runs, whole and one per step.
    max_model_len           tokens of prompt and answer together; None: the model's own limit. Never more than the pages hold.
    page_size               tokens in one page of the KV cache.
    num_pages               pages in the KV cache; None: as many as `kv_memory_bytes` hold.
    kv_memory_bytes         memory for the KV cache; None: what max_num_seqs full contexts need,
                            at most a share of what is free.
    prefix_cache            keep pages of finished requests, and reuse them for prompts that begin alike.
    vision_cache_tokens     image and video features kept for reuse, in tokens; 0 keeps none between steps.
    max_logprobs            of the likeliest tokens, as many a request may ask for beside each token.
    dtype                   of weights and KV cache; None: that of the checkpoint.
    device                  a torch device.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    kv_memory_bytes: int | None = None
    prefix_cache: bool = True
    vision_cache_tokens: int = 16384
    max_logprobs: int = 20
    dtype: Literal["float32", "bfloat16"] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {low}; change it or leave it out")
        if self.num_pages is not None and self.kv_memory_bytes is not None:
            raise ConfigError(
                f"num_pages ({self.num_pages}) and kv_memory_bytes ({self.kv_memory_bytes}) both size the KV cache; give one"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs ({self.max_num_seqs}), "
                "so that every running sequence gets its token; raise the first or lower the second"
            )
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ConfigError(f"dtype ({self.dtype!r}) must be float32, bfloat16 or left out")


_LEAST = {
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_model_len": 2,
    "page_size": 1,
    "num_pages": 1,
    "kv_memory_bytes": 1,
    "vision_cache_tokens": 0,
    "max_logprobs": 0,
}
_OPTIONAL = frozenset({"max_model_len", "num_pages", "kv_memory_bytes"})
