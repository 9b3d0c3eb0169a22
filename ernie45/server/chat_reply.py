"""OpenAI's chat answers, as one object or as chunks, with FastDeploy's additions.

Knows nothing about requests' bodies or the engine's work.
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from ernie45.processor.reasoning import Delta
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.choice import Choice, Piece
from ernie45.server.job import Task
from ernie45.server.logprobs import chat_logprobs
from ernie45.server.reply import Reply


class ChatReply(Reply):
    """`reasoning_content` is null where the model was not asked to think."""

    prefix: ClassVar[str] = "chatcmpl"

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        super().__init__(task, tokenizer)
        self._num_calls: Counter[int] = Counter()  # sent so far, by choice

    def begin(self) -> Iterable[dict[str, Any]]:
        for choice in self.choices:
            ids = {"prompt_token_ids": choice.job.prompt.token_ids.tolist()} if self.task.return_token_ids else {}
            yield self.envelope([self._chunk(choice, {"role": "assistant", "content": ""} | ids, Piece())])

    def pieces(self, choice: Choice, piece: Piece) -> Iterable[dict[str, Any]]:
        """One chunk for a piece of thought, one for a piece of the answer; the last has what belongs to all the tokens."""
        deltas = [self._delta(choice, delta) for delta in piece.deltas]
        if choice.finish_reason is not None or not deltas:
            deltas.append({})
        for index, delta in enumerate(deltas):
            last = index == len(deltas) - 1
            ids = {"completion_token_ids": piece.token_ids} if last and self.task.return_token_ids else {}
            finish_reason = choice.finish_reason if last else None
            chunk = self._chunk(choice, delta | ids, piece if last else Piece(), finish_reason)
            yield self.envelope([chunk])

    def envelope(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        base = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.task.model}
        return base | {"choices": choices} | self.usage_so_far() | extra

    def whole(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.task.model,
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self.usage,
        }

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        piece = choice.take()
        calls = whole_calls(piece.deltas)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": piece.text("content") or (None if calls else ""),
            "reasoning_content": piece.text("reasoning") if choice.job.thinking else None,
        }
        if calls:
            message["tool_calls"] = calls
        if self.task.return_token_ids:
            message["prompt_token_ids"] = choice.job.prompt.token_ids.tolist()
            message["completion_token_ids"] = piece.token_ids
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice, piece),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _delta(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        part, text = delta
        if part == "reasoning" or part == "content":
            return {"content" if part == "content" else "reasoning_content": text}
        self._num_calls[choice.index] += part == "call"
        index = self._num_calls[choice.index] - 1
        begin = {"index": index} | new_call(text) if part == "call" else {"index": index, "function": {"arguments": text}}
        return {"tool_calls": [begin]}

    def _chunk(self, choice: Choice, delta: dict[str, Any], piece: Piece, finish_reason: str | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {"index": choice.index, "delta": delta, "finish_reason": finish_reason}
        if choice.job.params.logprobs is not None:
            chunk["logprobs"] = self._logprobs(choice, piece) if piece.token_ids else None
        return chunk if finish_reason is None else chunk | {"stop_reason": choice.stop_reason}

    def _logprobs(self, choice: Choice, piece: Piece) -> dict[str, Any] | None:
        return None if choice.job.params.logprobs is None else chat_logprobs(piece.logprobs, self.tokenizer)


def new_call(name: str) -> dict[str, Any]:
    """A call whose arguments are still to come."""
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": ""}}


def whole_calls(deltas: Iterable[Delta]) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    calls: list[dict[str, Any]] = []
    for part, text in deltas:
        if part == "call":
            calls.append(new_call(text))
        elif part == "arguments":
            calls[-1]["function"]["arguments"] += text
    return calls
