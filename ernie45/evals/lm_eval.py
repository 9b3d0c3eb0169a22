"""Tasks of lm-eval (EleutherAI's evaluation harness), by its own command against our server.

Knows nothing about its tasks, or how the server works: both are other processes. lm-eval is no dependency of this package.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ernie45.checkpoint import resolve_model
from ernie45.config.errors import ConfigError, DataError

_COMMANDS = ("lm-eval", "lm_eval")
_START_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """tasks: their names, by comma. chat: over /chat/completions with the model's template, for tasks that let it write; else
    over /completions, which also gives log-probabilities of choices. options: further ones of lm-eval's command. serve: of
    `ernie45 serve`, for the server that is started."""

    tasks: str
    chat: bool = False
    options: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()


def find_command() -> str:
    """lm-eval's command, beside the running Python or on the path. ConfigError with how to install it."""
    beside = str(Path(sys.executable).parent)
    for name in _COMMANDS:
        found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
        if found:
            return found
    raise ConfigError('lm-eval (the command) is not there; install it with pip install "lm-eval[api]"')


def run_lm_eval(model: str, wanted: LmEval, url: str = "", served: str = "") -> dict[str, Any]:
    """Scores by task: {"model", "tasks": {name: {metric: value}}, "command"}.

    model: a folder or `tiny`: it is served on a free port of this machine, and its tokenizer cuts texts into tokens. url: a
    server that runs already, up to /v1, which has it under the name `served`. ConfigError if the command is not installed or
    the server does not start; DataError, with the end of what it said, if lm-eval fails.
    """
    command = find_command()
    if url:
        return _judge(command, wanted, url.rstrip("/"), served, str(resolve_model(model)) if model else "")
    folder = str(resolve_model(model))
    with our_server(folder, wanted.serve) as address:
        return _judge(command, wanted, address, Path(folder).name, folder)


@contextmanager
def our_server(folder: str, options: Sequence[str] = ()) -> Iterator[str]:
    """The address (up to /v1) of a server for a model folder, as long as the context lasts. options: of `ernie45 serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = Path(folder).name
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, "--quiet", *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ernie45.cli", "serve", folder, *flags], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            raise ConfigError(f"the server did not start: {log.read()[-500:].decode('utf-8', 'replace').strip()}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=2.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise ConfigError(f"the server was not ready after {_START_SECONDS:.0f} s; serve the model yourself and give --server")


def _judge(command: str, wanted: LmEval, address: str, name: str, tokenizer: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ernie45-lm-eval-") as out:
        words = arguments(wanted, address, name, tokenizer, Path(out))
        done = subprocess.run([command, *words], capture_output=True, text=True, check=False)
        files = sorted(Path(out).rglob("results_*.json"))
        if done.returncode or not files:
            said = " ".join((done.stderr or done.stdout).split())[-600:]
            raise DataError(f"lm-eval ended with {done.returncode}: {said}")
        found = json.loads(files[-1].read_text(encoding="utf-8"))
    return {"model": name, "command": ["lm-eval", *words], "tasks": read_results(found)}


def arguments(wanted: LmEval, address: str, name: str, tokenizer: str, out: Path) -> list[str]:
    """Of lm-eval's command."""
    path, kind = ("chat/completions", "local-chat-completions") if wanted.chat else ("completions", "local-completions")
    model_args = f"model={name},base_url={address}/{path},num_concurrent=16,max_retries=3"
    if tokenizer and not wanted.chat:
        model_args += f",tokenizer={tokenizer}"
    chat: Sequence[str] = ("--apply_chat_template",) if wanted.chat else ()
    first = ("--model", kind, "--model_args", model_args, "--tasks", wanted.tasks, "--output_path", str(out))
    return [*first, *chat, *wanted.options]


def read_results(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metric -> value of each task, from lm-eval's result file; filters stand behind the metric's name if there is one."""
    tasks = {}
    for name, entries in found.get("results", {}).items():
        metrics = {}
        for key, value in entries.items():
            metric, _, kept = key.partition(",")
            if isinstance(value, int | float) and not isinstance(value, bool):
                metrics[metric if kept in ("", "none") else f"{metric} ({kept})"] = float(value)
        tasks[name] = metrics
    if not tasks:
        raise DataError("lm-eval wrote no results; see what it says with --lm-eval-options=--verbosity=DEBUG")
    return tasks
