"""A whole server on a free port: the real one but for the engine, which says what a test tells it to.

Knows nothing about what is tested.
"""

import base64
import copy
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ernie45.config.errors import Ernie45Error, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.model import SpecialTokens
from ernie45.config.processor import ProcessorConfig
from ernie45.config.sampling import SamplingParams, TokenLogprob
from ernie45.config.server import ServerConfig
from ernie45.processor import Processor
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server import pages
from ernie45.server.engine_client import EngineClient
from ernie45.server.engine_loop import Engine, run_engine
from ernie45.server.messages import Capacity, Generate, Stats, Tokens
from ernie45.server.run import ServerRun, bind, media_limits
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.service import Service
from ernie45.server.supervisor import RestartPolicy
from ernie45.server.wire_socket import Connection

CONTROL_TOKENS = (
    "<unk> <s> </s> <|begin_of_sentence|> <|end_of_sentence|> <|IMAGE_PLACEHOLDER|> <|IMAGE_START|> <|IMAGE_END|> "
    "<|VIDEO_START|> <|VIDEO_END|> <think> </think>"
).split()
TOKENS = SpecialTokens(
    pad=0, bos=1, eos=2, end_of_turn=4, image_patch=5, image_start=6, image_end=7, video_start=8, video_end=9
)
MAX_MODEL_LEN = 1024
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


class FakeEngine:
    """Gives every request the same tokens, one a step or all `at_once`, and notes what was asked of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.loaded = threading.Event()
        self.loaded.set()
        self._running: dict[str, tuple[int, SamplingParams]] = {}
        self.reset()

    def reset(self) -> None:
        self.step_s = 0.0
        self.at_once = False
        self.fail_at: int | None = None
        self.prompts: list[ModelInput] = []
        self.params: list[SamplingParams] = []
        self.requests: list[Generate] = []
        self.aborted: list[str] = []
        self.preparing: dict[int | None, Future[None]] = {}  # by the seed of the request
        self.num_closed = 0
        self.say("hello")

    def say(self, text: str, ends: bool = True) -> None:
        """The tokens to come; `ends`: the model stops by itself after them, else it begins again."""
        self.reply, self.ends = self._tokenizer.encode(text, allow_special=True), ends

    def load(self) -> "FakeEngine":
        assert self.loaded.wait(30)
        self._running.clear()  # an engine that is started again knows nothing of what ran before
        return self

    @property
    def capacity(self) -> Capacity:
        return Capacity(max_model_len=MAX_MODEL_LEN, max_num_seqs=4, num_pages=64, page_size=16)

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def prepare(self, request: Generate) -> "Future[None] | None":
        return self.preparing.get(request.params.seed)

    def submit(self, request: Generate) -> None:
        prompt = request.prompt
        if len(prompt) >= MAX_MODEL_LEN:
            raise RequestError(f"prompt ({len(prompt)} tokens) must be shorter than {MAX_MODEL_LEN} tokens; shorten it")
        self.prompts.append(prompt)
        self.params.append(request.params)
        self.requests.append(request)
        self._running[request.request_id] = (0, request.params)

    def abort(self, request_id: str) -> None:
        if self._running.pop(request_id, None):
            self.aborted.append(request_id)

    def stats(self) -> Stats:
        return Stats(num_running=len(self._running), num_pages=self.capacity.num_pages)

    def close(self) -> None:
        self.num_closed += 1

    def step(self) -> list[Tokens]:
        time.sleep(self.step_s)
        reports = []
        for request_id, (index, params) in list(self._running.items()):
            if index == self.fail_at:
                raise RuntimeError("the fake engine broke, as told")
            if self.at_once:
                del self._running[request_id]
                ids = tuple(self.reply)
                reports.append(Tokens(request_id=request_id, token_ids=ids, num_tokens=len(ids) + 1, finish_reason="stop"))
                continue
            reports.append(self._next(request_id, index, params))
            if reports[-1].finish_reason:
                del self._running[request_id]
            else:
                self._running[request_id] = (index + 1, params)
        return reports

    def _next(self, request_id: str, index: int, params: SamplingParams) -> Tokens:
        ended = self.ends and index >= len(self.reply)
        token_id = TOKENS.eos if ended else self.reply[index % len(self.reply)]
        stops = token_id in params.stop_token_ids
        ids = () if stops else (token_id,)
        prompt = next(request.prompt.token_ids for request in self.requests if request.request_id == request_id)
        wanted = params.prompt_logprobs if index == 0 else None
        return Tokens(
            request_id=request_id,
            token_ids=ids,
            num_tokens=1,
            finish_reason="stop" if stops else "length" if index + 1 == params.max_tokens else None,
            stop_token_id=token_id if stops else None,
            logprobs=None if params.logprobs is None else tuple(logprob_of(token, params.logprobs) for token in ids),
            prompt_logprobs=None if wanted is None else (None, *(logprob_of(token, wanted) for token in prompt[1:].tolist())),
        )


def logprob_of(token_id: int, num_top: int) -> TokenLogprob:
    """What the fake engine says about a token: something exact in binary that depends on it, and that it was the likeliest."""
    logprob = -(1 + token_id % 7) / 8
    return TokenLogprob(token_id, logprob, 1, tuple((token_id + index, logprob - index) for index in range(num_top)))


class EngineThread:
    """A `Worker` that is a thread of the test's own process: the same loop over the same sockets as in a process."""

    def __init__(self, load: Callable[[], Engine], connection: Connection) -> None:
        self._thread = threading.Thread(target=run_engine, args=(load, connection), daemon=True)
        self._thread.start()

    def exit_reason(self) -> str | None:
        return None if self._thread.is_alive() else "the engine's thread has ended"

    def kill(self) -> None:
        """Nothing can end a thread from outside."""


class Served:
    """A server that runs in a thread. `client` talks to it. engine: a FakeEngine, or whatever has `load`.

    restarts: how often an engine that ended is started again; by default it is not.
    """

    def __init__(
        self, processor: Processor, engine: Any, defaults: SamplingDefaults | None = None, restarts: int = 0, **options: Any
    ) -> None:
        self.config = ServerConfig(model="models/fake", port=0, quiet=True, drain_seconds=1.0, **options)
        self.engine = engine
        listener = bind(self.config.host, 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        processor = copy.copy(processor)
        processor.limits = media_limits(self.config)
        client = EngineClient(partial(EngineThread, engine.load), restarts=RestartPolicy(most=restarts, first_delay_s=0.05))
        self.service = Service(self.config, processor, client, defaults)
        self.run = ServerRun(self.config, self.service, listener)
        self.exit_code: int | str | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def _serve(self) -> None:
        try:
            self.exit_code = self.run.run()
        except Ernie45Error as error:
            self.exit_code = f"{type(error).__name__}: {error}"

    def wait(self, state: str = "ready") -> "Served":
        wait_until(lambda: self.service.state == state and self.run.started)
        return self

    def stop(self) -> int | str | None:
        """The exit code."""
        self.client.close()
        self.run.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.exit_code

    def chat(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **fields})

    def answer(self, content: Any = "hi", **fields: Any) -> dict[str, Any]:
        """The whole answer; fails if there is none."""
        response = self.chat(content, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, content: Any = "hi", **fields: Any) -> list[dict[str, Any]]:
        """All events of a stream but [DONE], which must be the last."""
        response = self.chat(content, stream=True, **fields)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


@cache
def build_processor() -> Processor:
    """Bytes and control tokens as the vocabulary; images of 1 to 24 tokens, frames of 1 to 4."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(CONTROL_TOKENS),
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([], trainer)
    square = 28 * 28
    config = ProcessorConfig(
        image_min_pixels=square, image_max_pixels=24 * square, video_min_pixels=square, video_max_pixels=4 * square
    )
    return Processor(Tokenizer(json.loads(tokenizer.to_str())), tokens=TOKENS, config=config)


@pytest.fixture(scope="session")
def processor() -> Processor:
    return build_processor()


@pytest.fixture
def start(processor: Processor) -> Iterator[Any]:
    """Starts servers with options of their own; all are stopped at the end."""
    servers: list[Served] = []

    def start_one(engine: Any = None, processor: Processor = processor, **options: Any) -> Served:
        servers.append(Served(processor, engine or FakeEngine(processor.tokenizer), **options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(processor: Processor) -> Iterator[Served]:
    server = Served(processor, FakeEngine(processor.tokenizer)).wait()
    yield server
    assert server.stop() == 0


@pytest.fixture
def server(shared_server: Served) -> Served:
    """A server that runs, idle, its engine as new."""
    wait_until(lambda: shared_server.service.num_active == 0 and not shared_server.engine.has_work)
    shared_server.engine.reset()
    return shared_server


@pytest.fixture
def engine(server: Served) -> FakeEngine:
    """The engine of `server`."""
    return server.engine


@pytest.fixture
def new_engine(processor: Processor) -> FakeEngine:
    """An engine for `start`."""
    return FakeEngine(processor.tokenizer)


@pytest.fixture
def until() -> Any:
    return wait_until


@pytest.fixture
def png() -> bytes:
    """A real picture, 56 x 84."""
    image = Image.new("RGB", (56, 84), (200, 60, 20))
    image.paste((20, 60, 200), (10, 10, 40, 40))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing; install it with `apt-get install chromium`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: bytes) -> None:
    """Two sample pictures for the chat page, one with a question that would be markup if it were not text."""
    entries = [
        {"file": "a b.png", "question": "What is it?", "answer": "-", "kind": "digits"},
        {"file": "b.png", "question": "<b>What</b> is it?", "answer": "-", "kind": "digits"},
        {"file": "gone.png", "question": "Where is it?", "answer": "-", "kind": "digits"},
    ]
    for entry in entries[:2]:
        (tmp_path / entry["file"]).write_bytes(png)
    (tmp_path / "samples.json").write_text(json.dumps(entries))
    monkeypatch.setattr(pages, "SAMPLES", tmp_path)


@pytest.fixture
def open_chat(browser: Browser, samples: None) -> Iterator[Callable[..., Page]]:
    """Opens the chat page. Afterwards: no script error, policy kept, nothing asked of another host.

    before: JavaScript that runs first. Other options are those of a browser context.
    """
    contexts: list[Any] = []
    faults: list[str] = []
    asked: list[tuple[str, str]] = []

    def open_one(url: str, before: str = "", **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1000, "height": 800})
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None)
        page.on("request", lambda request: asked.append((request.url, url)))
        if before:
            page.add_init_script(before)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url, own in asked if not url.startswith((own, "data:", "blob:"))] == []


@pytest.fixture
def page(open_chat: Any, server: Served) -> Page:
    """The chat page of `server`, loaded and connected."""
    page = open_chat(server.url)
    expect(page.locator("#model.ready")).to_have_text("fake")
    return page
