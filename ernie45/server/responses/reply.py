"""A response as one object, or as typed events.

Knows nothing about requests' bodies or the engine's work.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.choice import Choice, Piece
from ernie45.server.job import Task
from ernie45.server.protocol import Message
from ernie45.server.reply import Reply
from ernie45.server.responses.output import Output, copy_item
from ernie45.server.responses.store import ResponseStore


@dataclass(frozen=True, kw_only=True)
class ResponseTask(Task):
    """A responses request, ready to run.

    properties fields of the response that are known before.
    summarize  whether thoughts are sent as summaries.
    messages   the conversation without instructions; store: where it is to be kept with its answer, if it is, for `owner`.
    """

    properties: dict[str, Any]
    summarize: bool = False
    messages: Sequence[Message] = ()
    store: ResponseStore | None = field(default=None, compare=False)
    owner: str = ""


class ResponseReply(Reply):
    """One response under way."""

    prefix: ClassVar[str] = "resp"
    last: ClassVar[bytes] = b""  # the last event says that it is the last

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        assert isinstance(task, ResponseTask), task
        super().__init__(task, tokenizer)
        self.id = f"resp_{uuid.uuid4().hex}"
        self._properties, self._messages = task.properties, task.messages
        self._store, self._owner = task.store, task.owner
        self._output = Output(task.summarize)
        self._num_events = 0

    def begin(self) -> Iterable[dict[str, Any]]:
        for name in ("created", "in_progress"):
            yield {"type": f"response.{name}", "response": self._response("in_progress")}

    def pieces(self, choice: Choice, piece: Piece) -> Iterator[dict[str, Any]]:
        yield from self._output.add(piece.deltas)

    def end(self) -> Iterable[dict[str, Any]]:
        status = self._status
        yield from self._output.close(status)
        yield {"type": f"response.{status}", "response": self._finish()}

    def whole(self) -> dict[str, Any]:
        for choice in self.choices:
            list(self.pieces(choice, choice.take()))
        list(self._output.close(self._status))
        return self._finish()

    def envelope(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        raise AssertionError("a response has events, not chunks")

    def encode(self, event: dict[str, Any]) -> bytes:
        """A typed event. An error, which has no type, becomes the failure of the response."""
        if "type" not in event:
            error = {"code": "server_error", "message": event["error"]["message"]}
            event = {"type": "response.failed", "response": self._response("failed") | {"error": error}}
        event["sequence_number"] = self._num_events
        self._num_events += 1
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"event: {event['type']}\ndata: {data}\n\n".encode()

    @property
    def _status(self) -> str:
        return "incomplete" if self.choices[0].finish_reason == "length" else "completed"

    def _finish(self) -> dict[str, Any]:
        usage = self.usage
        response = self._response(self._status) | {
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"],
                "total_tokens": usage["total_tokens"],
            },
        }
        if self._store is not None:
            self._store.put(response, (*self._messages, self._output.message()), self._owner)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.task.model,
            "output": [copy_item(item) for item in self._output.items],
            "usage": None,
            **self._properties,
        }
