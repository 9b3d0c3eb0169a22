"""Parts a model's output into its thought and its answer, all at once or piece by piece.

Knows nothing about tokens, requests or HTTP: text in, text out.

A prompt in thinking mode ends inside an open thought, so the output is `thought</think>answer`. The two ways below give
the same result however the text is cut, also when the thought never ends: then all of it is thought.
"""

from typing import Literal, NamedTuple

THINK_END = "</think>"

# Of a tool call, first its name, then its arguments in pieces; see `tools`.
Part = Literal["reasoning", "content", "call", "arguments"]


class Delta(NamedTuple):
    """A piece of the output, never empty."""

    part: Part
    text: str


class Split(NamedTuple):
    reasoning: str
    content: str


class ReasoningStream:
    """Parts text that comes in pieces. White space around the thought and line ends before the answer are left out.

    thinking: whether the prompt left a thought open. If not, everything is content and the closing tag has no meaning.
    """

    def __init__(self, thinking: bool) -> None:
        self.in_thought = thinking
        self._held = ""  # may turn out to be white space at the end of the thought, or the closing tag
        self._begun = False  # whether the thought, or after it the answer, has any text yet
        self._strip_answer = thinking

    def push(self, text: str) -> list[Delta]:
        """The pieces that are certain once this text is known."""
        if not self.in_thought:
            return self._content(text)
        thought, tag, rest = (self._held + text).partition(THINK_END)
        if not tag:
            certain = len(thought[: len(thought) - _overlap(thought, THINK_END)].rstrip())
            self._held = thought[certain:]
            return self._reasoning(thought[:certain])
        self._held = ""
        deltas = self._reasoning(thought.rstrip())
        self.in_thought = self._begun = False
        return deltas + self._content(rest)

    def flush(self) -> list[Delta]:
        """What was held back when the output ends; call it once."""
        held, self._held = self._held, ""
        return self._reasoning(held.rstrip()) if self.in_thought else []

    def _reasoning(self, text: str) -> list[Delta]:
        if not self._begun:
            text = text.lstrip()
        self._begun |= bool(text)
        return [Delta("reasoning", text)] if text else []

    def _content(self, text: str) -> list[Delta]:
        if self._strip_answer and not self._begun:
            text = text.lstrip("\n")
        self._begun |= bool(text)
        return [Delta("content", text)] if text else []


def split_reasoning(text: str, thinking: bool = True) -> Split:
    """The thought and the answer of a whole output; either may be empty."""
    stream = ReasoningStream(thinking)
    deltas = stream.push(text) + stream.flush()
    return Split(*("".join(piece for part, piece in deltas if part == wanted) for wanted in ("reasoning", "content")))


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag` without completing it."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
