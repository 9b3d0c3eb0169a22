"""Who answers questions: a model folder through the engine, or a server through its address.

Knows nothing about tasks or scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, Ernie45Error
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.data.answers import Graded
from ernie45.data.chat_api import ChatApi, Reply
from ernie45.engine.llm import LLM
from ernie45.processor import Processor

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: 0 is greedy. samples: answers a question. max_tokens: of each, thoughts included. seed: of the draws."""

    temperature: float = 0.0
    samples: int = 1
    max_tokens: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(f"samples ({self.samples}) must be 1 at temperature 0, where all are equal; set a temperature")


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer as a grader takes it (without reference yet), or why there is none."""

    answer: Graded | None = None
    error: str = ""
    detail: str = ""


class Answerer(Protocol):
    """name: for the report. sees_pictures: None where only a try can tell."""

    name: str
    sees_pictures: bool | None

    def answer(self, conversations: Sequence[Messages], thinking: bool, sampling: Sampling) -> list[list[Said]]:
        """`sampling.samples` answers to each conversation, in order."""
        ...

    def close(self) -> None: ...


class EngineAnswerer:
    """A model in this process."""

    def __init__(self, llm: LLM, processor: Processor, name: str, sees_pictures: bool | None = True) -> None:
        self.name, self.sees_pictures = name, sees_pictures
        self._llm, self._processor = llm, processor

    @classmethod
    def load(cls, model: str | Path, config: EngineConfig | None = None) -> "EngineAnswerer":
        """A folder, or `tiny`; 64 answers at a time by default. CheckpointError or ConfigError if it cannot be loaded."""
        folder = resolve_model(model)
        llm = LLM.load(folder, config or EngineConfig(max_num_seqs=64, max_num_batched_tokens=4096))
        return cls(llm, Processor.from_dir(folder), str(model), llm.model.config.vision is not None)

    def answer(self, conversations: Sequence[Messages], thinking: bool, sampling: Sampling) -> list[list[Said]]:
        errors: dict[int, Said] = {}
        inputs: dict[int, ModelInput] = {}
        for place, messages in enumerate(conversations):
            try:
                inputs[place] = self._encode(messages, thinking, sampling)
            except Ernie45Error as error:
                errors[place] = Said(error="not_asked", detail=str(error))
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            stop_token_ids=self._processor.stop_token_ids,
        )
        several = [item for item in inputs.values() for _ in range(sampling.samples)]
        each = [replace(params, seed=sampling.seed + number) for number in range(len(several))]
        completions = iter(self._llm.generate(several, each if sampling.temperature else params))
        said = {place: [self._said(next(completions), thinking) for _ in range(sampling.samples)] for place in inputs}
        return [said.get(place) or [errors[place]] * sampling.samples for place in range(len(conversations))]

    def close(self) -> None:
        self._llm.close()

    def _encode(self, messages: Messages, thinking: bool, sampling: Sampling) -> ModelInput:
        inputs = self._processor.encode_chat(messages, enable_thinking=thinking)
        longest = getattr(self._llm, "max_model_len", None)
        if longest is not None and len(inputs) + 1 > longest:
            raise ConfigError(f"the prompt has {len(inputs)} tokens, which leaves no room in the context of {longest}")
        return inputs

    def _said(self, completion: Any, thinking: bool) -> Said:
        text = self._processor.tokenizer.decode(completion.token_ids)
        finished = completion.finish_reason == "stop"
        return Said(answer=Graded.from_output(text, thinking, finished=finished, num_tokens=len(completion.token_ids)))


class ServerAnswerer:
    """A model behind an OpenAI-compatible address. Thinking is asked for with `chat_template_kwargs.enable_thinking`."""

    def __init__(self, api: ChatApi, concurrency: int = 16) -> None:
        """ConfigError if it does not answer, or has not the model."""
        self._api, self._concurrency = api, concurrency
        try:
            api.check()
        except ConfigError:
            api.close()
            raise
        self.name = f"{api.model} at {api.url}"
        self.sees_pictures: bool | None = None

    def answer(self, conversations: Sequence[Messages], thinking: bool, sampling: Sampling) -> list[list[Said]]:
        fields = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        asks: list[Callable[[], Reply]] = [
            partial(
                self._api.ask,
                messages,
                **fields,
                seed=sampling.seed + number * sampling.samples + sample,
                chat_template_kwargs={"enable_thinking": thinking},
            )
            for number, messages in enumerate(conversations)
            for sample in range(sampling.samples)
        ]
        replies = iter(self._api.ask_all(asks, self._concurrency))
        return [[_as_said(next(replies), thinking) for _ in range(sampling.samples)] for _ in conversations]

    def close(self) -> None:
        self._api.close()


def _as_said(reply: Reply, thinking: bool) -> Said:
    if reply.error:
        return Said(error=reply.error, detail=reply.detail)
    if not reply.reasoning and "</think>" in reply.text:  # a server that does not part them
        whole = Graded.from_output(reply.text, True, finished=reply.finished, num_tokens=reply.num_tokens)
        return Said(answer=replace(whole, thinking=thinking))
    answer = Graded(
        answer=reply.text,
        thoughts=reply.reasoning,
        thinking=thinking,
        num_thought_ends=int(thinking and bool(reply.text)),
        finished=reply.finished,
        num_tokens=reply.num_tokens,
    )
    return Said(answer=answer)
