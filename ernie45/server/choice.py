"""One answer under way: the engine's reports in, text, token ids and log-probabilities out, and how it ended.

Knows nothing about the form in which answers are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ernie45.config.sampling import TokenLogprob
from ernie45.processor.reasoning import Delta, Part, ReasoningStream
from ernie45.processor.tokenizer import IncrementalDecoder, Tokenizer
from ernie45.server.answer import Answer, join
from ernie45.server.job import Job
from ernie45.server.messages import FinishReason, Tokens
from ernie45.server.stops import StopStrings


@dataclass
class Piece:
    """A stretch of an answer. token_ids has a token that ended the answer, logprobs has not."""

    deltas: list[Delta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def text(self, part: Part) -> str:
        return "".join(text for name, text in self.deltas if name == part)


class Choice:
    """Follows one job. What has come and was not taken yet is in `pending`.

    finish_reason: None until the answer has ended. stop_reason: the stop string or the request's own stop token that ended it.
    """

    def __init__(self, index: int, job: Job, tokenizer: Tokenizer, silent: bool = False) -> None:
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens=job.skip_special_tokens)
        decoder.push(job.resumed)  # the answer may go on in the middle of a character
        self.index = index
        self.job = job
        self.silent = silent
        stop = StopStrings(job.stop, job.include_stop)
        calls = None if job.tools is None else job.tools.stream()
        reasoning = ReasoningStream(job.thinking, job.response_tags)
        self.answer = Answer(decoder, reasoning, stop, job.params.min_tokens, calls)
        self.pending = Piece()
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | Literal["tool_calls"] | None = None
        self.stop_reason: str | int | None = None
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    def add(self, report: Tokens) -> None:
        """Take a report of the engine; nothing happens after the end."""
        if self.finish_reason is not None:
            return
        self.num_cached_tokens = max(self.num_cached_tokens, report.num_cached_tokens)
        if report.prompt_logprobs is not None:
            self.prompt_logprobs = report.prompt_logprobs
        if self.silent:
            self.finish_reason = "length"
            return
        num_new = self._push(report.token_ids)
        self.pending.logprobs += (report.logprobs or ())[:num_new]
        if not self.answer.stopped and report.finish_reason is not None:
            self._end(report)
        if self.answer.stopped:
            self.finish_reason, self.stop_reason = "stop", self.answer.stop_string
        if self.finish_reason == "stop" and self.answer.num_calls:
            self.finish_reason = "tool_calls"

    def take(self) -> Piece:
        """What is pending, which then is nothing."""
        piece, self.pending = self.pending, Piece()
        piece.deltas = join(piece.deltas)
        return piece

    def _push(self, token_ids: Sequence[int]) -> int:
        before = self.answer.num_tokens
        self.pending.deltas += self.answer.push(token_ids)
        num_new = self.answer.num_tokens - before
        self.pending.token_ids += token_ids[:num_new]
        return num_new

    def _end(self, report: Tokens) -> None:
        stop_id = report.stop_token_id
        if stop_id is not None and self.job.include_stop:
            self._push([stop_id])
        else:
            self.answer.count_end(report.num_tokens - len(report.token_ids))
            self.pending.token_ids += [] if stop_id is None else [stop_id]
        self.pending.deltas += self.answer.finish()
        self.finish_reason = report.finish_reason
        self.stop_reason = stop_id if stop_id in self.job.own_stop_ids else None
