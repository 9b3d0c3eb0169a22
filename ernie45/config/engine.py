"""How an engine runs a model: budgets, pages, caches, device.

Knows nothing about requests or about the model that will run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ernie45.config.errors import ConfigError
from ernie45.config.speculation import SpeculationConfig


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One engine. The defaults suit a CPU and small cards.

    max_num_seqs            sequences in one step at most; more wait: the most urgent first, equal ones in order of arrival.
    max_num_batched_tokens  token budget of one step, prompts and generated tokens alike. One image larger than
                            the budget still runs, whole and one per step.
    max_prefill_tokens_beside_decodes  tokens of prompts in a step that also decodes, so that running answers keep their pace;
                            fewer far behind the beginning of a prompt, where a token costs more. None: a sixteenth of
                            max_num_batched_tokens, at least 64.
    max_encoder_tokens      image and video tokens encoded in one step, whoever's they are; a larger image still runs, alone.
                            None: max_num_batched_tokens.
    long_prefill_token_threshold  a prompt with more tokens than this left to compute is long, and leaves half of each step's
                            prompt tokens to others if there are any; None: what one step gives prompts.
    max_long_partial_prefills  long prompts that are computed at the same time; shorter ones overtake those that wait.
    max_model_len           tokens of prompt and answer together; None: the model's own limit. Never more than the pages hold.
    page_size               tokens in one page of the KV cache.
    num_pages               pages in the KV cache; None: as many as `kv_memory_bytes` hold.
    kv_memory_bytes         memory for the KV cache; None: what max_num_seqs full contexts need, within what is free.
    memory_share            share of the device's whole memory that may be in use once the KV cache is there, weights and other
                            programs included; None: the KV cache may have a share of what is free.
    prefix_cache            keep pages of finished requests, and reuse them for prompts that begin alike.
    host_cache_bytes        second tier: main memory for pages that the KV cache has no room for; 0: none.
    disk_cache_folder       third tier: a folder for pages that come back even after a restart; None: none.
    disk_cache_bytes        size of the third tier at most.
    overlap                 plan the next step while this one runs; None: on a GPU without speculation, where it pays.
    vision_cache_tokens     image and video features kept for reuse, in tokens; 0 keeps none between steps.
    lora_modules            (name, folder) of LoRA adapters to load at the start, as PEFT saves them.
    speculation             guesses of tokens ahead.
    records_routing         tell with each finished answer which experts its tokens were given, for training to replay.
    max_logprobs            of the likeliest tokens, as many a request may ask for beside each token.
    dtype                   of weights and KV cache; None: that of the checkpoint.
    device                  a torch device.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    max_prefill_tokens_beside_decodes: int | None = None
    max_encoder_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    max_long_partial_prefills: int = 1
    max_model_len: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    kv_memory_bytes: int | None = None
    memory_share: float | None = None
    prefix_cache: bool = True
    host_cache_bytes: int = 0
    disk_cache_folder: Path | None = None
    disk_cache_bytes: int = 4 << 30
    overlap: bool | None = None
    vision_cache_tokens: int = 16384
    max_logprobs: int = 20
    records_routing: bool = False
    lora_modules: tuple[tuple[str, str], ...] = ()
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
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
        if self.memory_share is not None and not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share ({self.memory_share!r}) must be above 0 and at most 1; use 0.9, or leave it out")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs ({self.max_num_seqs}), "
                "so that every running sequence gets its token; raise the first or lower the second"
            )
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ConfigError(f"dtype ({self.dtype!r}) must be float32, bfloat16 or left out")
        if self.overlap and self.speculation.method != "none":
            raise ConfigError(
                f"overlap ({self.overlap}) must not be on beside speculation ({self.speculation.method}), which needs the last "
                "step's tokens before it can guess the next; leave one of them out"
            )
        if not self.prefix_cache and (self.host_cache_bytes or self.disk_cache_folder is not None):
            raise ConfigError(
                f"host_cache_bytes ({self.host_cache_bytes}) and disk_cache_folder ({self.disk_cache_folder}) are tiers of the "
                "prefix cache, which is off; switch prefix_cache on or leave them out"
            )
        if self.records_routing and (self.host_cache_bytes or self.disk_cache_folder is not None):
            raise ConfigError(
                f"records_routing ({self.records_routing}) must not be on beside host_cache_bytes and disk_cache_folder, which "
                "do not keep it; leave one of them out"
            )
        if self.disk_cache_folder is not None and Path(self.disk_cache_folder).is_file():
            raise ConfigError(
                f"disk_cache_folder ({str(self.disk_cache_folder)!r}) must be a folder; it is a file, choose another name"
            )

    @property
    def prefill_tokens_beside_decodes(self) -> int:
        """`max_prefill_tokens_beside_decodes`, resolved."""
        return self.max_prefill_tokens_beside_decodes or max(self.max_num_batched_tokens // 16, 64)

    @property
    def encoder_tokens(self) -> int:
        """`max_encoder_tokens`, resolved."""
        return self.max_encoder_tokens or self.max_num_batched_tokens


_LEAST = {
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_prefill_tokens_beside_decodes": 1,
    "max_encoder_tokens": 1,
    "long_prefill_token_threshold": 1,
    "max_long_partial_prefills": 1,
    "max_model_len": 2,
    "page_size": 1,
    "num_pages": 1,
    "kv_memory_bytes": 1,
    "host_cache_bytes": 0,
    "disk_cache_bytes": 1,
    "vision_cache_tokens": 0,
    "max_logprobs": 0,
}
_OPTIONAL = frozenset(
    {
        "max_prefill_tokens_beside_decodes",
        "max_encoder_tokens",
        "long_prefill_token_threshold",
        "max_model_len",
        "num_pages",
        "kv_memory_bytes",
    }
)
