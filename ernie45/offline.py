"""A model for programs that have a list of questions: text and pictures in, text out, thousands at once, no server.

    from ernie45 import LLM

    llm = LLM("tiny")
    answers = llm.chat([[{"role": "user", "content": f"What is {n}+{n}?"}] for n in range(1000)], progress=True)
    print(answers[21].text)

Knows nothing about HTTP or how the engine works.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, Ernie45Error, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.media import override_processor
from ernie45.config.sampling import SamplingParams, TokenLogprob
from ernie45.engine import llm
from ernie45.engine.request import Event, FinishReason, Request
from ernie45.processor import Processor
from ernie45.processor.media_cache import MediaCache
from ernie45.processor.reasoning import Delta, ReasoningStream, has_response_tags
from ernie45.processor.source import MediaLimits
from ernie45.processor.tokenizer import IncrementalDecoder
from ernie45.server.answer import Answer
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.stops import StopStrings
from ernie45.server.thinking import thought_is_open

Message = Mapping[str, Any]
# So many sequences' worth of requests are ready: pictures of thousands of requests would not fit into memory.
_READY_PER_SEQUENCE = 2
_CACHE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class TextCompletion:
    """One answer. reasoning: the thought before it, without its tags. token_ids: of both, without what ended them.

    error: why there is none (finish_reason "error"), where the `LLM` returns errors.
    """

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | Literal["error"]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    num_reasoning_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: Ernie45Error | None = None

    @classmethod
    def failed(cls, error: Ernie45Error) -> "TextCompletion":
        """Of a prompt that could not be asked."""
        counts = dict.fromkeys(("num_prompt_tokens", "num_cached_tokens", "num_tokens", "num_reasoning_tokens"), 0)
        return cls(text="", reasoning="", token_ids=(), finish_reason="error", error=error, **counts)


class LLM:
    """A model folder, or `tiny`, with its tokenizer, its template and an engine. Not for several threads at a time."""

    def __init__(
        self,
        model: str | Path = "tiny",
        config: EngineConfig | None = None,
        *,
        limits: MediaLimits | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> None:
        """config: of the engine. limits: what pictures may be and where they may come from. mm_processor_kwargs: numbers of
        the picture processing, by FastDeploy's names. on_error: what `chat` and `generate` do with a prompt that cannot be:
        raise its error, or go on and return it among the answers (`TextCompletion.error`).
        CheckpointError or ConfigError if something cannot be used."""
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error ({on_error!r}) must be 'raise' or 'return'")
        folder = resolve_model(model)
        self.processor = Processor.from_dir(folder, limits=limits)
        self.processor.config = override_processor(self.processor.config, mm_processor_kwargs or {})
        self.processor.cache = MediaCache(_CACHE_BYTES)
        self.defaults = SamplingDefaults.from_dir(folder)
        self.engine = llm.LLM.load(folder, config)
        self.on_error = on_error
        self._ids = count()

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
        enable_thinking: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        progress: bool = False,
    ) -> list[TextCompletion]:
        """Answers to conversations in OpenAI's form, in their order; one conversation may stand alone.

        Pictures are addresses, or in parts of type image and video paths (`pathlib.Path`), bytes or PIL images. params: for
        all, or one each; None: as the model's generation config says. stop: strings that end an answer, not looked for in a
        thought. progress: show a bar. RequestError or MediaError names the conversation that cannot be, and the others are
        lost with it; with `on_error="return"` it stands in the place of the answer.
        """
        several = bool(conversations) and not isinstance(conversations[0], Mapping)
        each: Any = conversations if several else [conversations]

        def encode(index: int) -> ModelInput:
            return self.processor.encode_chat(each[index], enable_thinking, tools=tools)

        return self._run(encode, self._params(params, len(each)), stop, progress)

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
        allow_special: bool = True,
        progress: bool = False,
    ) -> list[TextCompletion]:
        """What follows each text, which goes to the model as it is. The rest as in `chat`.

        allow_special: control tokens in it are such; else they are text like all the rest.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)

        def encode(index: int) -> ModelInput:
            return self.processor.encode_text(texts[index], allow_special=allow_special)

        return self._run(encode, self._params(params, len(texts)), stop, progress)

    def stream(
        self,
        conversation: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        enable_thinking: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Generator[list[Delta], None, TextCompletion]:
        """One answer as it comes: for each step the pieces of thought and answer that are certain now, perhaps none.

        The generator's value is the whole answer; closing it ends the request. The rest as in `chat`, but errors are raised.
        """
        [own] = self._params(params, 1)
        running = self._start(self.processor.encode_chat(conversation, enable_thinking, tools=tools), own, stop)
        try:
            while not running.ended:
                for event in self.engine.step():
                    assert event.request_id == running.request_id, f"{event.request_id} was asked for while a stream ran"
                    yield running.take(event)
            return running.completion()
        finally:
            self.engine.abort(running.request_id)

    def close(self) -> None:
        """End the engine's threads."""
        self.engine.close()

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, num: int) -> list[SamplingParams]:
        """One for each, with the model's own ends where none are given."""
        if params is None:
            names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
            params = SamplingParams(**{name: getattr(self.defaults, name) for name in names})
        each = [params] * num if isinstance(params, SamplingParams) else list(params)
        if len(each) != num:
            raise RequestError(f"params ({len(each)}) must be one for all or one for each of {num} prompts")
        return [one if one.stop_token_ids else replace(one, stop_token_ids=self.processor.stop_token_ids) for one in each]

    def _run(
        self, encode: Callable[[int], ModelInput], params: Sequence[SamplingParams], stop: Sequence[str], progress: bool
    ) -> list[TextCompletion]:
        """Prompts are encoded as there is room for them, answers are read as they come."""
        waiting = iter(range(len(params)))
        running: dict[str, tuple[int, _Running]] = {}
        done: dict[int, TextCompletion] = {}
        room = _READY_PER_SEQUENCE * self.engine.config.max_num_seqs
        with _bar(len(params), progress) as advance:

            def finish(index: int, completion: TextCompletion) -> None:
                done[index] = completion
                advance()

            try:
                while len(done) < len(params):
                    while len(running) < room and (index := next(waiting, None)) is not None:
                        try:
                            started = self._start(encode(index), params[index], stop)
                            running[started.request_id] = index, started
                        except Ernie45Error as error:
                            finish(index, self._failed(index, error))
                    for event in self.engine.step():
                        index, one = running[event.request_id]
                        one.take(event)
                        if one.ended:
                            self.engine.abort(event.request_id)
                            del running[event.request_id]
                            finish(index, one.completion())
            finally:
                for request_id in running:
                    self.engine.abort(request_id)
        return [done[index] for index in range(len(params))]

    def _failed(self, index: int, error: Ernie45Error) -> TextCompletion:
        """An error that is returned; or raised, of its kind and with the place."""
        if self.on_error == "return":
            return TextCompletion.failed(error)
        raise type(error)(f"prompt {index}: {error}") from error

    def _start(self, inputs: ModelInput, params: SamplingParams, stop: Sequence[str]) -> "_Running":
        request = Request(request_id=f"offline-{next(self._ids)}", inputs=inputs, params=params)
        self.engine.submit(request)
        processor = self.processor
        thinking = thought_is_open(inputs.token_ids, processor.think_start_id, processor.think_end_id)
        reasoning = ReasoningStream(thinking, has_response_tags(processor.tokenizer, thinking))
        answer = Answer(IncrementalDecoder(processor.tokenizer), reasoning, StopStrings(tuple(stop)), params.min_tokens)
        return _Running(request.request_id, answer, len(inputs))


class _Running:
    """One answer under way."""

    def __init__(self, request_id: str, answer: Answer, num_prompt_tokens: int) -> None:
        self.request_id = request_id
        self._answer = answer
        self._num_prompt_tokens = num_prompt_tokens
        self._texts = {"reasoning": "", "content": ""}
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._num_cached_tokens = 0
        self._finish_reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        return self._finish_reason is not None

    def take(self, event: Event) -> list[Delta]:
        """Read what a step gave: the pieces that are certain now."""
        before = self._answer.num_tokens
        deltas = self._answer.push(event.token_ids)
        num_new = self._answer.num_tokens - before
        self._token_ids += event.token_ids[:num_new]
        self._num_cached_tokens = max(self._num_cached_tokens, event.num_cached_tokens)
        if event.logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *event.logprobs[:num_new]]
        if not self._answer.stopped and event.finish_reason is not None:
            self._answer.count_end(event.stop_token_id is not None)
            deltas += self._answer.finish()
            self._finish_reason = event.finish_reason
        if self._answer.stopped:
            self._finish_reason = "stop"
        for delta in deltas:
            self._texts[delta.part] += delta.text
        return deltas

    def completion(self) -> TextCompletion:
        assert self._finish_reason is not None, self.request_id
        return TextCompletion(
            text=self._texts["content"],
            reasoning=self._texts["reasoning"].strip("\n"),
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_tokens=self._answer.num_tokens,
            num_reasoning_tokens=self._answer.num_reasoning_tokens,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
        )


@contextmanager
def _bar(total: int, visible: bool) -> Iterator[Callable[[], None]]:
    """A function to call after each answer; with a bar on stderr if it is to be visible."""
    if not visible:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("answers", total=total)
        yield lambda: bar.advance(task)
