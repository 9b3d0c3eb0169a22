"""OpenAI's plain completions, as one object or as chunks.

Knows nothing about requests' bodies or the engine's work.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ernie45.config.sampling import TokenLogprob
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.choice import Choice, Piece
from ernie45.server.job import Task
from ernie45.server.logprobs import completion_logprobs
from ernie45.server.reply import Reply


class CompletionReply(Reply):
    """The text of a choice begins with its prompt if the request asked for that."""

    prefix: ClassVar[str] = "cmpl"

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        super().__init__(task, tokenizer)
        self._begun = [False] * len(self.choices)
        self._offsets = [0] * len(self.choices)

    def pieces(self, choice: Choice, piece: Piece) -> Iterable[dict[str, Any]]:
        yield self.envelope([self._choice(choice, piece)])

    def envelope(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        base = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.task.model}
        return base | {"choices": choices} | self.usage_so_far() | extra

    def whole(self) -> dict[str, Any]:
        return self.envelope([self._choice(choice, choice.take()) for choice in self.choices], usage=self.usage)

    def _choice(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        first = not self._begun[choice.index]
        self._begun[choice.index] = True
        text = piece.text("content")
        result: dict[str, Any] = {"index": choice.index, "logprobs": self._logprobs(choice, piece, first)}
        if first and self.task.echo:
            text = self.tokenizer.decode(choice.job.prompt.token_ids.tolist(), choice.job.skip_special_tokens) + text
        if self.task.return_token_ids:
            result["prompt_token_ids"] = choice.job.prompt.token_ids.tolist() if first else None
            result["completion_token_ids"] = piece.token_ids
        return result | {"text": text, "finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}

    def _logprobs(self, choice: Choice, piece: Piece, first: bool) -> dict[str, Any] | None:
        if choice.job.params.logprobs is None:
            return None
        logprobs: Sequence[TokenLogprob | None] = piece.logprobs
        first_id = None
        if first and choice.prompt_logprobs is not None:
            logprobs = [*choice.prompt_logprobs, *piece.logprobs]
            first_id = int(choice.job.prompt.token_ids[0])
        result, offset = completion_logprobs(logprobs, self.tokenizer, first_id, self._offsets[choice.index])
        self._offsets[choice.index] = offset
        return result
