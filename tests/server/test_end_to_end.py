"""The real engine behind the real server, with a small random model: FastDeploy's command, the two requests of its guide."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch

from ernie45.checkpoint import save_model
from ernie45.config.engine import EngineConfig
from ernie45.config.model import VisionConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.processor.reasoning import split_reasoning
from tests.small_model import small_config

COMMAND = "--max-model-len 32768 --enable-mm --reasoning-parser ernie-45-vl"


@pytest.fixture(scope="module")
def folder(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: both expert pools, vision tower, random weights."""
    config = small_config(
        vocab_size=len(processor.tokenizer),
        vision=VisionConfig(depth=1, hidden_size=32, num_heads=2, intermediate_size=64),
        tokens=processor.tokens,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "random-vl"
    save_model(ErnieModel(config, dtype=torch.float32), path, layout="pt")
    processor.save(path)
    return path


@pytest.fixture(scope="module")
def ports() -> tuple[int, int, int]:
    """Of the API, the metrics and the engine."""
    first, second, third = (free_port() for _ in range(3))
    return first, second, third


@pytest.fixture(scope="module")
def url(folder: Path, ports: tuple[int, int, int]) -> Iterator[str]:
    """FastDeploy's command, word for word but for module, model and ports; at the end it is stopped and must end with 0."""
    port, metrics_port, engine_port = ports
    flags = f"--metrics-port {metrics_port} --engine-worker-queue-port {engine_port} {COMMAND} --max-num-seqs 32"
    process = start(f"--model {folder} --port {port} {flags}")
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
    assert log.count("note:") == 2, "the other flags do what they say"
    assert f"http://127.0.0.1:{port}/" in log
    assert f"metrics: http://127.0.0.1:{metrics_port}/metrics" in log
    assert "holds: 32 sequences at once" in log
    assert "Traceback" not in log


def start(arguments: str, group: bool = False) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ernie45.entrypoints.openai.api_server", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=group)


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
        options["extra_body"] = {"metadata": {"enable_thinking": thinking, "reasoning_max_tokens": 40}}
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


def test_metrics_are_on_both_ports(url: str, ports: tuple[int, int, int]) -> None:
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 3}, trust_env=False).status_code == 200
    texts = [httpx.get(f"{base}/metrics", trust_env=False).text for base in (url, f"http://127.0.0.1:{ports[1]}")]
    assert all(re.search(r"^ernie45:requests_total [1-9]", text, re.M) for text in texts)


@pytest.mark.parametrize(("flag", "index"), [("--port", 0), ("--metrics-port", 1), ("--engine-worker-queue-port", 2)])
def test_port_in_use(folder: Path, url: str, ports: tuple[int, int, int], flag: str, index: int) -> None:
    flags = {"--host": "127.0.0.1", "--port": "0", flag: str(ports[index]), "--max-model-len": "64"}
    process = start(f"--model {folder} {' '.join(f'{name} {value}' for name, value in flags.items())}")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(log.splitlines()) == 1, log
    assert re.search(rf"\({ports[index]}\) (is|cannot be had: Address already) in use.*choose another with {flag}$", log), log


class Whole:
    """A server of one's own in a process group of its own, as a terminal makes one; `engine` is its engine's process."""

    def __init__(self, folder: Path, flags: str = "") -> None:
        port = free_port()
        self.process = start(f"--model {folder} --host 127.0.0.1 --port {port} --max-model-len 512 {flags}", group=True)
        self.url = f"http://127.0.0.1:{port}"
        wait_ready(self.url, self.process)

    @property
    def engine(self) -> psutil.Process:
        [engine] = psutil.Process(self.process.pid).children()
        return engine

    def stream(self) -> Any:
        body = {"prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 400}
        return httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False)

    def end(self) -> str:
        """Its log, once it has ended by itself."""
        try:
            return self.process.communicate(timeout=30)[1]
        finally:
            if self.process.poll() is None:
                self.process.kill()


def test_an_engine_killed_under_load_comes_back(folder: Path) -> None:
    server = Whole(folder)
    try:
        with server.stream() as response:
            lines = response.iter_lines()
            next(lines)
            engine = server.engine
            engine.kill()
            began = time.monotonic()
            rest = [line for line in lines if line]
            assert time.monotonic() - began < 2
        assert "the engine is not running" in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert httpx.get(f"{server.url}/ready", trust_env=False).json() == {"status": "restarting"}
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, trust_env=False)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
        wait_ready(server.url, server.process)
        body = {"prompt": "a", "max_tokens": 3}
        assert httpx.post(f"{server.url}/v1/completions", json=body, trust_env=False).status_code == 200
        assert server.engine.pid != engine.pid
    except BaseException:
        server.process.kill()
        raise
    log = drained(server, signal.SIGTERM)  # the new engine too
    assert "SIGKILL" in log
    assert "ready again" in log


def test_ctrl_c_drains(folder: Path) -> None:
    assert "Traceback" not in drained(Whole(folder), signal.SIGINT)


def drained(server: Whole, number: signal.Signals) -> str:
    """The log of a server whose whole group got a signal while it answered: the answer was completed, and all ended well."""
    with server.stream() as response:
        lines = response.iter_lines()
        next(lines)
        os.killpg(server.process.pid, number)
        rest = [line for line in lines if line]
    assert '"finish_reason":"length"' in "".join(rest)
    assert "error" not in "".join(rest)
    log = server.end()
    assert server.process.returncode == 0
    return log


def test_a_second_ctrl_c_ends_all_at_once(folder: Path) -> None:
    server = Whole(folder)
    engine = server.engine
    engine.suspend()  # so that it can neither answer nor stop by itself
    request = threading.Thread(target=_ask, args=(server.url,))
    request.start()
    time.sleep(0.5)
    os.killpg(server.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert server.process.poll() is None, "it waits for the answer"
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(2) == 130
    assert engine.wait(2) is None or not engine.is_running()
    server.end()
    request.join(10)


def _ask(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=20, trust_env=False)


def test_a_killed_server_leaves_no_engine(folder: Path) -> None:
    server = Whole(folder)
    engine = server.engine
    server.process.kill()
    engine.wait(2)
    server.end()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model /no/such/folder", "does not exist"),
        ("--model FOLDER --reasoning-parser other", "--reasoning-parser (other) must be ernie-45-vl or"),
        ("--model FOLDER --tool-call-parser ernie46", "did you mean"),
        ("--model FOLDER --workers 4", "--workers (4) must be 1"),
        ("--model FOLDER --quantization wint4", "--quantization is not for this server; the weights' own type"),
        ("--model FOLDER --max-num-seqs 0", "max_num_seqs"),
        ("--model FOLDER --allowed-media-folder /no/such", "allowed_media_folder"),
        ("--model FOLDER --no-such-flag", "no-such-flag"),
    ],
)
def test_flags_that_are_wrong(folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    from ernie45.entrypoints.openai.api_server import main

    argv = arguments.replace("FOLDER", str(folder)).split()
    if "no-such" in words:
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
    else:
        assert main(argv) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
