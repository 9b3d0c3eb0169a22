"""OpenAI's answers: one object, or chunks as server-sent events, from the same pieces.

Knows nothing about requests' parsing or the engine's work; it reads reports and writes dicts.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from ernie45.server.answer import Answer
from ernie45.server.errors import ApiError
from ernie45.server.messages import Accepted, FinishReason, Tokens
from ernie45.server.reasoning import Delta
from ernie45.server.translate import Job

Reports = AsyncGenerator[Accepted | Tokens, None]


@dataclass(kw_only=True)
class Reply:
    """One answer under way: its identity, its text so far, and what usage will say."""

    model: str
    job: Job
    answer: Answer
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    def take(self, tokens: Tokens) -> list[Delta]:
        """The pieces of text that a report brings; sets `finish_reason` with the last one."""
        self.num_cached_tokens = max(self.num_cached_tokens, tokens.num_cached_tokens)
        deltas = self.answer.push(tokens.token_ids)
        if self.answer.stopped:
            self.finish_reason = "stop"
        elif tokens.finish_reason is not None:
            self.answer.count_end(tokens.num_tokens - len(tokens.token_ids))
            deltas += self.answer.finish()
            self.finish_reason = "stop" if self.answer.stopped else tokens.finish_reason
        return deltas

    @property
    def usage(self) -> dict[str, Any]:
        prompt, answer = self.job.prompt, self.answer
        lengths = {kind: sum(item.length for item in prompt.media if item.kind == kind) for kind in ("image", "video")}
        return {
            "prompt_tokens": len(prompt),
            "completion_tokens": answer.num_tokens,
            "total_tokens": len(prompt) + answer.num_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.num_cached_tokens,
                "image_tokens": lengths["image"],
                "video_tokens": lengths["video"],
            },
            "completion_tokens_details": {"reasoning_tokens": answer.num_reasoning_tokens},
        }

    def chunk(self, delta: dict[str, Any] | None, **extra: Any) -> dict[str, Any]:
        """One streamed object. No delta: no choice either, only the usage."""
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": extra.pop("finish_reason", None)}]
        base = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        usage = {"usage": None} if self.job.include_usage else {}
        return base | {"choices": choices} | usage | extra

    def completion(self, reasoning: str | None, content: str) -> dict[str, Any]:
        """The whole answer as one object."""
        message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}],
            "usage": self.usage,
        }


async def whole_answer(reply: Reply, reports: Reports) -> dict[str, Any]:
    """Wait for the end, not longer than needed; `reasoning_content` is null where the model was not asked to think."""
    texts = {"reasoning": "", "content": ""}
    async for report in reports:
        if isinstance(report, Tokens):
            for part, text in reply.take(report):
                texts[part] += text
            if reply.finish_reason is not None:
                break
    return reply.completion(texts["reasoning"] if reply.job.thinking else None, texts["content"])


async def events(reply: Reply, reports: Reports, to_error: Callable[[Exception], ApiError]) -> AsyncGenerator[bytes, None]:
    """Server-sent events: the role, the pieces, the finish reason, the usage if asked for, [DONE].

    to_error: what to tell the client when the engine fails under way; the answer then ends with an error event.
    """
    try:
        yield _event(reply.chunk({"role": "assistant", "content": ""}))
        async for report in reports:
            if isinstance(report, Tokens):
                for part, text in reply.take(report):
                    yield _event(reply.chunk({"reasoning_content" if part == "reasoning" else "content": text}))
                if reply.finish_reason is not None:
                    break
        await reports.aclose()  # frees what the engine holds before the client has read the rest
        yield _event(reply.chunk({}, finish_reason=reply.finish_reason))
        if reply.job.include_usage:
            yield _event(reply.chunk(None, usage=reply.usage))
    except Exception as error:  # noqa: BLE001  the status is sent already: an event is the only place left to say it
        yield _event(to_error(error).body)
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
