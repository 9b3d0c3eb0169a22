"""From the token ids of one request to pieces of thought and answer, with the counts that usage reports.

Knows nothing about HTTP or the engine.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from ernie45.processor.reasoning import Delta, ReasoningStream
from ernie45.server.stops import StopStrings
from ernie45.server.tools import CallStart, Content, Event, ToolCallStream


class Decoder(Protocol):
    """What `processor.tokenizer.IncrementalDecoder` does: only whole characters come out."""

    def push(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


class Answer:
    """Follows one answer. Stop strings and tool calls are looked for in the answer, not in the thought before it.

    reasoning: parts the thought from the answer. calls: finds tool calls; None: there are none to be found.
    min_tokens: in the text of the first so many tokens no stop string is looked for.

    num_tokens, num_reasoning_tokens: tokens so far; the closing tag counts as thought, and so does what ends it.
    stopped: a stop string is complete, or the only call; nothing more will come out and the request can be aborted.
    """

    def __init__(
        self,
        decoder: Decoder,
        reasoning: ReasoningStream,
        stop: StopStrings | None = None,
        min_tokens: int = 0,
        calls: ToolCallStream | None = None,
    ) -> None:
        self._decoder = decoder
        self._reasoning = reasoning
        self._stop = stop or StopStrings()
        self._min_tokens = min_tokens
        self._calls = calls
        self.num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stop.hit or (self._calls is not None and self._calls.done)

    @property
    def num_calls(self) -> int:
        return 0 if self._calls is None else self._calls.num_calls

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stop.found

    def push(self, token_ids: Iterable[int]) -> list[Delta]:
        """The pieces these tokens complete. Tokens behind a stop string are neither shown nor counted."""
        deltas: list[Delta] = []
        for token_id in token_ids:
            if self.stopped:
                break
            self.num_tokens += 1
            self.num_reasoning_tokens += self._reasoning.in_thought
            deltas += self._read_calls(self._filter(self._reasoning.push(self._decoder.push([token_id]))))
            if self.stopped:
                deltas += self._last_calls()
        return join(deltas)

    def count_end(self, num_tokens: int) -> None:
        """Count tokens that ended the request and have no text."""
        self.num_tokens += num_tokens
        self.num_reasoning_tokens += num_tokens * self._reasoning.in_thought

    def finish(self) -> list[Delta]:
        """The rest, when no more tokens come; call it once."""
        if self.stopped:
            return []
        deltas = self._filter(self._reasoning.push(self._decoder.flush()) + self._reasoning.flush())
        rest = "" if self.stopped else self._stop.flush()
        deltas += [Delta("content", rest)] if rest else []
        return join([*self._read_calls(deltas), *self._last_calls()])

    def _filter(self, deltas: list[Delta]) -> list[Delta]:
        if self.num_tokens <= self._min_tokens:
            return deltas
        checked = (Delta(part, self._stop.push(text) if part == "content" else text) for part, text in deltas)
        return [delta for delta in checked if delta.text]

    def _read_calls(self, deltas: list[Delta]) -> list[Delta]:
        if self._calls is None:
            return deltas
        read: list[Delta] = []
        for delta in deltas:
            read += _deltas(self._calls.push(delta.text)) if delta.part == "content" else [delta]
        return read

    def _last_calls(self) -> list[Delta]:
        return [] if self._calls is None else list(_deltas(self._calls.flush()))


def _deltas(events: Iterable[Event]) -> Iterator[Delta]:
    for event in events:
        if isinstance(event, CallStart):
            yield Delta("call", event.name)
        else:
            yield Delta("content" if isinstance(event, Content) else "arguments", event.text)


def join(deltas: Iterable[Delta]) -> list[Delta]:
    """One piece for each run of pieces of the same part."""
    joined: list[Delta] = []
    for part, text in deltas:
        if joined and joined[-1].part == part:
            text = joined.pop().text + text
        joined.append(Delta(part, text))
    return joined
