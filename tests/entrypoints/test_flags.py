"""Flags: each does what it says, is said to do nothing, or is refused with a way out; both commands know the same ones."""

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.server import ServerConfig
from ernie45.config.speculation import SpeculationConfig
from ernie45.entrypoints.fastdeploy_flags import FASTDEPLOY_FLAGS
from ernie45.entrypoints.flag_table import ALL_FLAGS, FLAGS
from ernie45.entrypoints.flags import add_flags, notes, to_config
from ernie45.entrypoints.openai.api_server import build_parser, fit_context

# FastDeploy's list: every name that its commands use, but those of schedulers on other machines.
FASTDEPLOY = """
host workers controller-port max-waiting-time max-concurrency enable-mm-output timeout-graceful-shutdown timeout api-key port
metrics-port engine-worker-queue-port max-model-len enable-mm reasoning-parser max-num-seqs served-model-name revision tokenizer
tokenizer-base-url model-config-name task runner convert override-pooler-config chat-template tool-parser-plugin
limit-mm-per-prompt mm-processor-kwargs max-encoder-cache max-processor-cache use-warmup load-choices load-strategy
dynamic-load-weight lm_head-fp32 seed logits-processors quantization enable-logprob max-logprobs logprobs-mode
guided-decoding-backend guided-decoding-disable-any-whitespace speculative-config enable-early-stop early-stop-config
tensor-parallel-size data-parallel-size local-data-parallel-id enable-expert-parallel enable-eplb eplb-config
disable-custom-all-reduce ips block-size gpu-memory-utilization num-gpu-blocks-override kv-cache-ratio swap-space
prealloc-dec-block-slot-num-threshold cache-queue-port static-decode-blocks enable-prefix-caching kvcache-storage-backend
enable-output-caching max-num-batched-tokens enable-chunked-prefill max-num-partial-prefills max-long-partial-prefills
long-prefill-token-threshold disable-chunked-mm-input splitwise-role cache-transfer-protocol pd-comm-port rdma-comm-ports
router innode-prefill-ports scheduler-name graph-optimization-config plas-attention-config tool-call-parser
""".split()


def parse(arguments: str, fastdeploy: bool = False) -> ServerConfig:
    args = parsed(arguments)
    return to_config(args, ALL_FLAGS, fastdeploy)


def parsed(arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default="tiny")
    add_flags(parser, ALL_FLAGS)
    return parser.parse_args(re.findall(r"'[^']*'|\S+", arguments) if "'" not in arguments else split(arguments))


def split(arguments: str) -> list[str]:
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", arguments)]


def test_every_flag_of_fastdeploy_is_known() -> None:
    assert {f"--{name}" for name in FASTDEPLOY} - {flag.name for flag in ALL_FLAGS} == set()


@pytest.mark.parametrize("flag", ALL_FLAGS, ids=lambda flag: flag.name)
def test_a_flag_does_exactly_one_thing(flag: Any) -> None:
    assert sum(map(bool, (flag.target, flag.only, flag.note, flag.instead))) == 1
    assert flag.text
    assert bool(flag.only) == bool(flag.rule)
    if flag.target and flag.target != "api_key_file":
        owner = EngineConfig if flag.target.startswith("engine.") else ServerConfig
        assert flag.target.rpartition(".")[2] in {field.name for field in fields(owner)}


def test_names_and_targets_are_there_once() -> None:
    names = [flag.name for flag in ALL_FLAGS]
    targets = [flag.target for flag in FLAGS]
    assert len(set(names)) == len(names)
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize(
    ("arguments", "field", "expected"),
    [
        ("--host h", "host", "h"),
        ("--port 0", "port", 0),
        ("--metrics-port 9", "metrics_port", 9),
        ("--engine-worker-queue-port 8182", "engine_port", 8182),
        ("--engine-timeout 7.5", "engine_timeout_s", 7.5),
        ("--served-model-name me", "served_model_name", "me"),
        ("--max-model-len 64", "engine.max_model_len", 64),
        ("--max-num-seqs 3", "engine.max_num_seqs", 3),
        ("--max-num-batched-tokens 384", "engine.max_num_batched_tokens", 384),
        ("--max-long-partial-prefills 2", "engine.max_long_partial_prefills", 2),
        ("--long-prefill-token-threshold 0", "engine.long_prefill_token_threshold", None),
        ("--long-prefill-token-threshold 99", "engine.long_prefill_token_threshold", 99),
        ("--device cuda:1", "engine.device", "cuda:1"),
        ("--dtype bfloat16", "engine.dtype", "bfloat16"),
        ("--dtype auto", "engine.dtype", None),
        ("--block-size 64", "engine.page_size", 64),
        ("--num-gpu-blocks-override 77", "engine.num_pages", 77),
        ("--kv-cache-memory-bytes 1000", "engine.kv_memory_bytes", 1000),
        ("--gpu-memory-utilization 0.9", "engine.memory_share", 0.9),
        ("--swap-space 1.5", "engine.host_cache_bytes", 3 << 29),
        ("--disk-cache-folder pages", "engine.disk_cache_folder", Path("pages")),
        ("--disk-cache-gib 2", "engine.disk_cache_bytes", 2 << 30),
        ("--enable-prefix-caching", "engine.prefix_cache", True),
        ("--no-enable-prefix-caching", "engine.prefix_cache", False),
        ("--max-encoder-cache 0", "engine.vision_cache_tokens", 0),
        ("--max-encoder-cache -1", "engine.vision_cache_tokens", 16384),
        ("--max-processor-cache 0.5", "max_processor_cache", 0.5),
        ("--max-media-in-flight 0.5", "max_media_in_flight", 0.5),
        ("--limit-mm-per-prompt '{\"image\": 3}'", "limit_mm_per_prompt", {"image": 3}),
        ("--mm-processor-kwargs '{\"video_fps\": 3}'", "mm_processor_kwargs", {"video_fps": 3}),
        (
            '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 5}\'',
            "engine.speculation",
            SpeculationConfig(method="ngram", num_draft_tokens=3, max_ngram=5),
        ),
        ("--lora-modules a=x b=y=z", "engine.lora_modules", (("a", "x"), ("b", "y=z"))),
        ('--lora-modules \'{"name": "a", "path": "x"}\'', "engine.lora_modules", (("a", "x"),)),
        ("--allow-private-media", "allow_private_media", True),
        ("--allowed-media-hosts a 10.0.0.0/8", "allowed_media_hosts", ("a", "10.0.0.0/8")),
        ("--allowed-media-folder FOLDER", "allowed_media_folder", "FOLDER"),
        ("--num-media-workers 9", "num_media_workers", 9),
        ("--chat-template FILE", "chat_template", "FILE"),
        ("--tool-call-parser hermes", "tool_call_parser", "hermes"),
        ("--seed 5", "seed", 5),
        ("--allowed-hosts a.example b.example", "allowed_hosts", ("a.example", "b.example")),
        ("--trust-request-chat-template", "trust_request_chat_template", True),
        ("--max-concurrency 7", "max_num_requests", 7),
        ("--max-logprobs 5", "engine.max_logprobs", 5),
        ("--max-body-bytes 4096", "max_body_bytes", 4096),
        ("--request-timeout 9", "request_timeout_s", 9.0),
        ("--request-timeout 0", "request_timeout_s", None),
        ("--client-timeout 9", "client_timeout_s", 9.0),
        ("--timeout-graceful-shutdown 3", "drain_seconds", 3.0),
        ("--api-key one --api-key two", "api_keys", ("one", "two")),
        ("--api-key-file FILE", "api_keys", ("a-key",)),
        ("--log-json", "log_json", True),
        ("--log-details", "log_details", True),
        ("--trace-endpoint http://x", "trace_endpoint", "http://x"),
        ("--quiet", "quiet", True),
    ],
)
def test_what_a_flag_sets(arguments: str, field: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ERNIE45_API_KEY", "FD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("a-key\n")
    places = {"FOLDER": tmp_path, "FILE": tmp_path / "file"}
    for word, path in places.items():
        arguments = arguments.replace(word, str(path))
    config: Any = parse(arguments)
    for name in field.split("."):
        config = getattr(config, name)
    assert config == (places.get(expected, expected) if isinstance(expected, str) else expected)


def test_all_flags_that_work_are_tested_above() -> None:
    [mark] = [mark for mark in test_what_a_flag_sets.pytestmark if mark.name == "parametrize"]
    tested = {re.sub("^--no-", "--", case[0].split()[0]) for case in mark.args[1]}
    assert {flag.name for flag in FLAGS} == tested


def test_defaults() -> None:
    ours, theirs = parse(""), parse("", fastdeploy=True)
    assert ours == ServerConfig(model="tiny")
    assert (theirs.host, theirs.port, theirs.engine.max_model_len, theirs.engine.max_num_seqs) == ("0.0.0.0", 8000, 2048, 8)
    assert parse("--host h --max-num-seqs 5", fastdeploy=True).engine.max_num_seqs == 5


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FD_API_KEY", "k1,k2")
    assert parse("--api-key k0").api_keys == ("k0", "k1", "k2")


@pytest.mark.parametrize("flag", FASTDEPLOY_FLAGS, ids=lambda flag: flag.name)
def test_flags_without_effect_say_so_and_others_are_refused(flag: Any) -> None:
    words = flag.name if flag.is_switch or flag.both else f"{flag.name} {flag.only[0] if flag.only else '7'}"
    args = parsed(words)
    if flag.instead:
        with pytest.raises(ConfigError, match=rf"^{flag.name} is not for this server; \w"):
            to_config(args, ALL_FLAGS)
        return
    assert to_config(args, ALL_FLAGS) == to_config(parsed(""), ALL_FLAGS)
    assert notes(args, ALL_FLAGS) == ([f"{flag.name} has no effect: {flag.note}"] if flag.note else [])
    if flag.only:
        with pytest.raises(ConfigError, match=rf"^{flag.name} \(other\) must be {flag.only[0]}"):
            to_config(parsed(f"{flag.name} other"), ALL_FLAGS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--port 70000", r"\(70000\) must be a whole number from 0 to 65535"),
        ("--max-num-seqs many", r"\('many'\) must be a whole number, for example 8"),
        ("--engine-timeout soon", r"\('soon'\) must be a number"),
        ("--swap-space -1", r"\(-1\) must be a number of GiB"),
        ("--limit-mm-per-prompt image=3", r"must be a JSON object"),
        ("--limit-mm-per-prompt [1]", r"must be a JSON object"),
        ("--speculative-config '{\"model\": 1}'", r"unknown key 'model'; known are method"),
        ('--speculative-config \'{"method": "eagle"}\'', r"'eagle'\) must be one of none, ngram, mtp"),
        ("--lora-modules a", r"must be NAME=FOLDER"),
        ("--max-num-se 3", r"unrecognized arguments"),
    ],
)
def test_values_that_cannot_be_read(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(arguments)
    assert stopped.value.code == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("arguments", ["--max-num-seqs 0", "--engine-timeout 0", "--chat-template /no/such", "--block-size 0"])
def test_values_out_of_range(arguments: str) -> None:
    with pytest.raises(ConfigError, match=r"\(.*\) must be"):
        parse(arguments)


def test_a_context_longer_than_the_model_is_cut() -> None:
    config = parse("--max-model-len 32768")
    cut, lines = fit_context(config, 4096)
    assert (cut.engine.max_model_len, len(lines)) == (4096, 1)
    assert fit_context(parse("--max-model-len 4096"), 4096)[1] == []


def test_help_has_every_flag_with_its_default() -> None:
    text = re.sub(r"\s+", " ", build_parser().format_help())
    for flag in ALL_FLAGS:
        assert flag.name in text
    assert "port; 0 takes a free one (default: 8000)" in text
    assert "sequences in one step (default: 8)" in text


def test_the_short_help_has_what_works() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, ALL_FLAGS)
    text = parser.format_help()
    assert "sequences in one step (default: 32)" in re.sub(r"\s+", " ", text)
    assert "--splitwise-role" not in text.partition("\n\n")[2]
