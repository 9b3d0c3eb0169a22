"""Sizes: pages by number, by memory and by need; engine options out of range."""

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


def test_free_memory_is_plausible():
    assert 1 << 20 < capacity.free_bytes("cpu") < 1 << 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_num_seqs": 0}, r"max_num_seqs \(0\) must be a whole number of at least 1"),
        ({"page_size": "16"}, "page_size"),
        ({"num_pages": 4, "kv_memory_bytes": 1000}, "give one"),
        ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens \(8\) must be at least max_num_seqs \(32\)"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_options_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**values)
