"""Ranges of an engine's options: every number has a least value, and errors name the option, the value and a way out."""

from dataclasses import fields
from pathlib import Path

import pytest

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.speculation import SpeculationConfig

LEAST = {
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
MAY_BE_NONE = {name for name in LEAST if EngineConfig.__dataclass_fields__[name].default is None}


def test_every_number_has_a_range():
    numbers = {field.name for field in fields(EngineConfig) if field.type in (int, int | None)}
    assert numbers == set(LEAST)


@pytest.mark.parametrize("name", LEAST)
def test_the_least_value_is_taken_and_one_less_is_not(name: str):
    others = {"max_num_seqs": 1} if name == "max_num_batched_tokens" else {}
    assert getattr(EngineConfig(**{name: LEAST[name], **others}), name) == LEAST[name]
    for bad in (LEAST[name] - 1, -(10**20), 1.5, True, "3", *([] if name in MAY_BE_NONE else [None])):
        with pytest.raises(ConfigError, match=rf"{name} \({bad!r}\) must be a whole number of at least {LEAST[name]}; change"):
            EngineConfig(**{name: bad, **others})


def test_what_is_left_out_is_resolved():
    config = EngineConfig(max_num_batched_tokens=4096)
    assert (config.prefill_tokens_beside_decodes, config.encoder_tokens) == (256, 4096)
    assert EngineConfig(max_num_batched_tokens=100).prefill_tokens_beside_decodes == 64
    config = EngineConfig(max_prefill_tokens_beside_decodes=1, max_encoder_tokens=2)
    assert (config.prefill_tokens_beside_decodes, config.encoder_tokens) == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pages": 2, "kv_memory_bytes": 2}, r"num_pages \(2\) and kv_memory_bytes \(2\) both size the KV cache; give one"),
        ({"max_num_batched_tokens": 4, "max_num_seqs": 5}, r"max_num_batched_tokens \(4\) must be at least max_num_seqs \(5\)"),
        ({"dtype": "float16"}, r"dtype \('float16'\) must be float32, bfloat16 or left out"),
        ({"prefix_cache": False, "host_cache_bytes": 1}, r"host_cache_bytes \(1\) .* which is off; switch prefix_cache on"),
        ({"prefix_cache": False, "disk_cache_folder": Path("x")}, r"disk_cache_folder \(x\) .* which is off"),
        ({"disk_cache_folder": Path(__file__)}, r"disk_cache_folder .* must be a folder; it is a file, choose another name"),
        ({"speculation": SpeculationConfig(method="ngram"), "overlap": True}, r"overlap \(True\) .* speculation \(ngram\)"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**options)


def test_a_share_of_memory_is_a_share():
    assert EngineConfig(memory_share=1.0).memory_share == 1
    for bad in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ConfigError, match=r"memory_share .* must be above 0 and at most 1"):
            EngineConfig(memory_share=bad)
