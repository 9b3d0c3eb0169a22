"""The real engine behind the real server, with a small random model: FastDeploy's command, the two requests of its guide."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from ernie45.checkpoint import save_model
from ernie45.config.engine import EngineConfig
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.server.reasoning import split_reasoning

COMMAND = "--metrics-port 8181 --engine-worker-queue-port 8182 --max-model-len 32768 --enable-mm --reasoning-parser ernie-45-vl"


@pytest.fixture(scope="module")
def folder(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: both expert pools, vision tower, random weights."""
    tokens: SpecialTokens = processor.tokens
    pools = [ExpertPoolConfig(modality=name, num_experts=4, ffn_size=16, num_active=2) for name in ("text", "vision")]
    config = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=len(processor.tokenizer),
        head_dim=16,
        mrope_section=(3, 3, 2),
        expert_pools=tuple(pools),
        shared_ffn_size=16,
        max_position_embeddings=512,
        vision=VisionConfig(depth=1, hidden_size=32, num_heads=2, intermediate_size=64),
        tokens=tokens,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "random-vl"
    save_model(ErnieModel(config, dtype=torch.float32), path, layout="pt")
    processor.save(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """FastDeploy's command, word for word but for module, model and port; at the end it is stopped and must end with 0."""
    port = free_port()
    process = start(f"--model {folder} --port {port} {COMMAND} --max-num-seqs 32")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url
    except BaseException:
        process.kill()
        raise
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "note: --enable-mm has no effect" in log
    assert "note: --max-model-len 32768 is more than this model was made for: 512 is used" in log
    assert "note: --metrics-port 8181 has no effect" in log
    assert "note: --engine-worker-queue-port 8182 has no effect" in log
    assert f"http://127.0.0.1:{port}/" in log
    assert "holds: 32 sequences at once" in log
    assert "Traceback" not in log


def start(arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ernie45.entrypoints.openai.api_server", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_ready(url: str, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "not ready in time"
        try:
            if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("thinking", [True, False])
def test_the_two_requests_of_the_guide(url: str, data_url: str, thinking: bool) -> None:
    body = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url}},
                    {"type": "text", "text": "Descript this image"},
                ],
            }
        ],
        "metadata": {"enable_thinking": thinking},
    }
    command = ["curl", "-sS", "--noproxy", "*", "-X", "POST", f"{url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str)
    assert isinstance(message["reasoning_content"], str) == thinking
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 6
    assert answer["usage"]["total_tokens"] <= 512


@pytest.mark.parametrize("thinking", [True, False])
def test_greedy_answers_are_those_of_the_engine_alone(url: str, folder: Path, data_url: str, thinking: bool) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": "sum?"}]}
    ]
    processor = Processor.from_dir(folder)
    llm = LLM.load(folder, EngineConfig(max_model_len=512))
    params = SamplingParams(max_tokens=40, temperature=0, stop_token_ids=processor.stop_token_ids)
    [expected] = llm.generate([processor.encode_chat(messages, enable_thinking=thinking)], params)
    reasoning, content = split_reasoning(processor.tokenizer.decode(expected.token_ids), thinking)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        options: Any = {"model": "random-vl", "messages": messages, "max_tokens": 40, "temperature": 0}
        options["extra_body"] = {"metadata": {"enable_thinking": thinking}}
        whole = client.chat.completions.create(**options)
        assert whole.choices[0].message.content == content
        assert (whole.choices[0].message.model_extra or {})["reasoning_content"] == (reasoning if thinking else None)
        assert whole.usage.completion_tokens == len(expected.token_ids) + (expected.stop_token_id is not None)
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **options)]
        assert "".join(delta.content or "" for delta in deltas) == content
        assert "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas) == reasoning


def test_seeds(url: str) -> None:
    def ask(**fields: Any) -> str:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 24, "top_p": 1, **fields}
        message = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()["choices"][0][
            "message"
        ]
        return message["reasoning_content"] + message["content"]

    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5) != ask(seed=6)
    assert len({ask() for _ in range(3)}) > 1, "without a seed, answers differ"


def test_port_in_use(folder: Path, url: str) -> None:
    process = start(f"--model {folder} --host 127.0.0.1 --port {url.rpartition(':')[2]}")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(log.splitlines()) == 2, log  # the note about the context, and the error
    assert "is in use" in log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model /no/such/folder", "does not exist"),
        ("--model FOLDER --reasoning-parser other", "reasoning_parser"),
        ("--model FOLDER --port 70000", "port"),
        ("--model FOLDER --max-num-seqs 0", "max_num_seqs"),
        ("--model FOLDER --allowed-media-folder /no/such", "allowed_media_folder"),
        ("--model FOLDER --no-such-flag", "--no-such-flag"),
    ],
)
def test_flags_that_are_wrong(folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    from ernie45.entrypoints.openai.api_server import main

    argv = arguments.replace("FOLDER", str(folder)).split()
    if "no-such-flag" in arguments:
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
    else:
        assert main(argv) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
