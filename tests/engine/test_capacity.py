"""Sizes: pages by number, by memory and by need; engine options out of range."""

from typing import Any

import pytest
import torch

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.model import ModelConfig
from ernie45.engine import capacity
from ernie45.model.cache import PagedKVCache


def test_pages_by_number_memory_and_need(config: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    page_bytes = PagedKVCache.bytes_per_page(config, 16, torch.float32)
    cache = PagedKVCache(config, num_pages=3, page_size=16)
    assert 3 * page_bytes == cache.keys_LNSJK.nbytes + cache.values_LNSJK.nbytes
    assert capacity.num_pages(EngineConfig(num_pages=7), config, torch.float32) == 7
    assert capacity.num_pages(EngineConfig(kv_memory_bytes=page_bytes * 5 + 1), config, torch.float32) == 5
    assert capacity.num_pages(EngineConfig(kv_memory_bytes=page_bytes * 5), config, torch.bfloat16) == 10
    assert capacity.num_pages(EngineConfig(max_num_seqs=3, max_model_len=100), config, torch.float32) == 3 * 7
    monkeypatch.setattr(capacity, "free_bytes", lambda device: page_bytes * 40)
    assert capacity.num_pages(EngineConfig(), config, torch.float32) == 10
    with pytest.raises(ConfigError, match=r"kv_memory_bytes \(10\) must hold at least one page"):
        capacity.num_pages(EngineConfig(kv_memory_bytes=10), config, torch.float32)


def test_a_share_of_the_memory_counts_what_is_in_use(config: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    page_bytes = PagedKVCache.bytes_per_page(config, 16, torch.float32)
    monkeypatch.setattr(capacity, "total_bytes", lambda device: page_bytes * 100)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: page_bytes * 40)

    def num_pages(share: float, **options: Any) -> int:
        return capacity.num_pages(EngineConfig(memory_share=share, **options), config, torch.float32)

    assert [num_pages(share) for share in (0.75, 0.9, 1)] == [15, 30, 40]
    assert num_pages(0.9, num_pages=7) == num_pages(0.1, num_pages=7) == 7
    assert num_pages(0.1, kv_memory_bytes=page_bytes * 5) == 5
    assert num_pages(1, max_num_seqs=1, max_model_len=100) == 7
    with pytest.raises(ConfigError, match=r"memory_share \(0.6\) leaves no room for one page"):
        num_pages(0.6)


def test_free_memory_is_plausible():
    assert 1 << 20 < capacity.free_bytes("cpu") <= capacity.total_bytes("cpu") < 1 << 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_num_seqs": 0}, r"max_num_seqs \(0\) must be a whole number of at least 1"),
        ({"page_size": "16"}, "page_size"),
        ({"num_pages": 4, "kv_memory_bytes": 1000}, "give one"),
        ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens \(8\) must be at least max_num_seqs \(32\)"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"memory_share": 0}, r"memory_share \(0\) must be above 0 and at most 1"),
        ({"memory_share": 1.01}, "memory_share"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_options_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**values)
