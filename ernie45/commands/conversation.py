"""A model that is talked to: history, questions with media in, pieces of thought and answer out.

Knows nothing about terminals or the protocol of the server.
"""

import argparse
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ernie45.config.engine import EngineConfig
from ernie45.config.sampling import SamplingParams
from ernie45.offline import LLM, TextCompletion
from ernie45.processor.reasoning import Delta
from ernie45.processor.source import is_url


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are made."""

    thinking: bool = True
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "Settings":
        """From the options of `arguments.add_media` and `arguments.add_sampling`."""
        return cls(
            thinking=args.thinking,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
        )

    def sampling(self) -> SamplingParams:
        """The same for the engine."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one answer took. Seconds: to the first token (prompt included), and from the first to the last."""

    num_prompt_tokens: int
    num_tokens: int
    num_reasoning_tokens: int
    first_seconds: float
    decode_seconds: float
    finish_reason: str

    def __str__(self) -> str:
        thought = f", {self.num_reasoning_tokens} of them thought" if self.num_reasoning_tokens else ""
        speed = f", then {(self.num_tokens - 1) / self.decode_seconds:.0f}/s" if self.decode_seconds > 0 else ""
        cut = "; cut off" if self.finish_reason == "length" else ""
        return (
            f"{self.num_prompt_tokens} tokens in, {self.num_tokens} out{thought}; "
            f"first after {self.first_seconds * 1000:.0f} ms{speed}{cut}"
        )


class Conversation:
    """One model and the turns so far. A turn is kept when its answer is complete; an interrupted one never happened."""

    def __init__(self, llm: LLM, settings: Settings) -> None:
        self.llm = llm
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.usage: Usage | None = None

    @classmethod
    def load(cls, model: str, settings: Settings, engine: EngineConfig | None = None) -> "Conversation":
        """Of a model folder or `tiny`. CheckpointError or ConfigError if it cannot be used."""
        return cls(LLM(model, engine), settings)

    def set_thinking(self, thinking: bool) -> None:
        """Think before the answers that follow, or not."""
        self.settings = replace(self.settings, thinking=thinking)

    def clear(self) -> None:
        """Forget all turns."""
        self.messages = []

    def ask(
        self, question: str, images: Sequence[str | Path] = (), videos: Sequence[str | Path] = ()
    ) -> Generator[Delta, None, None]:
        """Stream the answer to a question; afterwards `usage` tells what it took."""
        messages = [*self.messages, user_message(question, images, videos)]
        start = time.perf_counter()
        times: list[float] = []
        stream = self.llm.stream(messages, self.settings.sampling(), enable_thinking=self.settings.thinking)
        answer = yield from _flat(stream, times)
        reply = {"role": "assistant", "content": answer.text}
        self.messages = [*messages, reply | ({"reasoning_content": answer.reasoning} if answer.reasoning else {})]
        self.usage = Usage(
            num_prompt_tokens=answer.num_prompt_tokens,
            num_tokens=answer.num_tokens,
            num_reasoning_tokens=answer.num_reasoning_tokens,
            first_seconds=times[0] - start,
            decode_seconds=times[-1] - times[0],
            finish_reason=answer.finish_reason,
        )

    def complete(
        self, prompts: Sequence[str], *, chat: bool, images: Sequence[str | Path] = (), videos: Sequence[str | Path] = ()
    ) -> list[TextCompletion]:
        """Answers to all prompts in their order, as one batch; with `chat` through the template, each with all media."""
        params = self.settings.sampling()
        if not chat:
            return self.llm.generate(prompts, params, allow_special=False)
        turns = [[user_message(prompt, images, videos)] for prompt in prompts]
        return self.llm.chat(turns, params, enable_thinking=self.settings.thinking)


def _flat(stream: Generator[list[Delta], None, TextCompletion], times: list[float]) -> Generator[Delta, None, TextCompletion]:
    """The pieces one by one. times: gets when each step was done."""
    try:
        while True:
            deltas = next(stream)
            times.append(time.perf_counter())
            yield from deltas
    except StopIteration as end:
        return end.value
    finally:
        stream.close()


def user_message(question: str, images: Sequence[str | Path], videos: Sequence[str | Path]) -> dict[str, Any]:
    """One user turn: pictures and videos first, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": media_source(image)} for image in images]
    parts += [{"type": "video", "video": media_source(video)} for video in videos]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def media_source(name: str | Path) -> str | Path:
    """What a user names at the command line: an address stays one, anything else is a path."""
    return name if isinstance(name, Path) or is_url(name) else Path(name).expanduser()
