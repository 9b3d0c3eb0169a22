"""What the answers of all generating routes have in common: identity, choices, usage, and the steps of a stream.

Knows nothing about the form of any of them.
"""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.choice import Choice, Piece
from ernie45.server.job import Task
from ernie45.server.messages import Tokens


class Reply(ABC):
    """One answer under way. Either `add` all reports and then ask for `whole`, or send `begin`, `take`... and `end`."""

    prefix: ClassVar[str]
    last: ClassVar[bytes] = b"data: [DONE]\n\n"

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.id = f"{self.prefix}-{task.request_id or uuid.uuid4().hex}"
        self.created = int(time.time())
        self.choices = [Choice(index, job, tokenizer, task.silent) for index, job in enumerate(task.jobs)]

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def usage(self) -> dict[str, Any]:
        """A prompt counts once, however many answers it has."""
        firsts = [next(choice for choice in self.choices if choice.job.prompt_index == index) for index in self._prompts]
        media = [item for choice in firsts for item in choice.job.prompt.media]
        lengths = {kind: sum(item.length for item in media if item.kind == kind) for kind in ("image", "video")}
        num_prompt = sum(len(choice.job.prompt) for choice in firsts)
        num_answer = sum(choice.answer.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answer,
            "total_tokens": num_prompt + num_answer,
            "prompt_tokens_details": {
                "cached_tokens": sum(choice.num_cached_tokens for choice in firsts),
                "image_tokens": lengths["image"],
                "video_tokens": lengths["video"],
            },
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.answer.num_reasoning_tokens for choice in self.choices)
            },
        }

    def begin(self) -> Iterable[dict[str, Any]]:
        """Events before any token."""
        return ()

    def take(self, index: int, report: Tokens) -> Iterable[dict[str, Any]]:
        """Events that a report for one choice brings."""
        choice, num_wanted = self.choices[index], self.task.tokens_per_event
        events: list[dict[str, Any]] = []
        for part in _cut(report, num_wanted, len(choice.pending.token_ids)):
            if choice.finish_reason is not None:
                break
            choice.add(part)
            pending = choice.pending
            enough = pending.deltas if num_wanted is None else len(pending.token_ids) >= num_wanted
            if enough or choice.finish_reason is not None:
                events += self.pieces(choice, choice.take())
        return events

    def end(self) -> Iterable[dict[str, Any]]:
        """Events behind all choices."""
        return [self.envelope([], usage=self.usage)] if self.task.include_usage else ()

    @abstractmethod
    def pieces(self, choice: Choice, piece: Piece) -> Iterable[dict[str, Any]]:
        """Events of a piece, with the choice's finish reason if it has one."""

    @abstractmethod
    def envelope(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        """One event of the stream."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer as one object, when all reports are in."""

    def encode(self, event: dict[str, Any]) -> bytes:
        """An event as it goes over the line."""
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    def usage_so_far(self) -> dict[str, Any]:
        """What an event of a stream says about usage."""
        if self.task.continuous_usage:
            return {"usage": self.usage}
        return {"usage": None} if self.task.include_usage else {}

    @property
    def _prompts(self) -> list[int]:
        return sorted({choice.job.prompt_index for choice in self.choices})


def _cut(report: Tokens, num_wanted: int | None, num_pending: int) -> Iterator[Tokens]:
    """The report in parts that fill an event each, together with what is pending; the last is what is left."""
    start = 0
    while num_wanted is not None and report.num_tokens - start > num_wanted - num_pending:
        end = start + num_wanted - num_pending
        logprobs = report.logprobs and report.logprobs[start:end]
        ids = report.token_ids[start:end]
        yield replace(report, token_ids=ids, num_tokens=len(ids), logprobs=logprobs, finish_reason=None, stop_token_id=None)
        start, num_pending = end, 0
    logprobs = report.logprobs and report.logprobs[start:]
    yield replace(report, token_ids=report.token_ids[start:], num_tokens=report.num_tokens - start, logprobs=logprobs)
