"""Parts a model's output into its thought and its answer, all at once or piece by piece.

Knows nothing about tokens, requests or HTTP: text in, text out.

A prompt in thinking mode ends inside an open thought, so the output is `thought</think>answer`. The two ways below give
the same result however the text is cut, also when the thought never ends: then all of it is thought. The -Thinking models
wrap their answers in `<response>` tags, which are left out where they are a wrapping; anywhere else they are text.
"""

from collections.abc import Container
from typing import Literal, NamedTuple

THINK_END = "</think>"
RESPONSE, RESPONSE_END = "<response>", "</response>"

# Of a tool call, first its name, then its arguments in pieces.
Part = Literal["reasoning", "content", "call", "arguments"]


class Delta(NamedTuple):
    """A piece of the output, never empty."""

    part: Part
    text: str


class Split(NamedTuple):
    reasoning: str
    content: str


def has_response_tags(tokens: Container[str], thinking: bool) -> bool:
    """Whether an answer may be wrapped: behind a thought, or where the tag is a token of the model's tokenizer."""
    return thinking or RESPONSE in tokens


class ResponseTags:
    """Takes the wrapping off an answer that comes in pieces, with the white space around and inside of it.

    What is no wrapping comes out as it is: tags in the middle of a text, or a second pair.
    """

    def __init__(self) -> None:
        self._place: Literal["before", "opened", "inside", "behind", "elsewhere"] = "before"
        self._held = ""  # white space, perhaps with the beginning of a tag

    def push(self, text: str) -> str:
        """The text that is certain to belong to the answer."""
        text, self._held = self._held + text, ""
        if self._place == "before":
            text = self._before(text)
        if self._place == "opened":
            text = text.lstrip()
            self._place = "inside" if text else "opened"
        if self._place == "inside":
            return self._inside(text)
        return self._behind(text) if self._place == "behind" else text

    def flush(self) -> str:
        """What was held back when the answer ends."""
        held, self._held = self._held, ""
        return "" if self._place == "behind" else held

    def _before(self, text: str) -> str:
        """The text behind the tag; all of it, if there is none."""
        start = text.lstrip()
        if start.startswith(RESPONSE):
            self._place = "opened"
            return start[len(RESPONSE) :]
        if RESPONSE.startswith(start):
            self._held = text
            return ""
        self._place = "elsewhere"
        return text

    def _inside(self, text: str) -> str:
        inner, tag, rest = text.partition(RESPONSE_END)
        if tag:
            self._place = "behind"
            return inner.rstrip() + self._behind(rest)
        certain = len(text[: len(text) - _overlap(text, RESPONSE_END)].rstrip())
        self._held = text[certain:]
        return text[:certain]

    def _behind(self, text: str) -> str:
        if not text.strip():
            self._held = text
            return ""
        self._place = "elsewhere"
        return text


class ReasoningStream:
    """Parts text that comes in pieces. White space around the thought and line ends before the answer are left out.

    thinking: whether the prompt left a thought open. If not, everything is content and the closing tag has no meaning.
    response_tags: whether the answer may be wrapped; see `ResponseTags`.
    """

    def __init__(self, thinking: bool, response_tags: bool = False) -> None:
        self.in_thought = thinking
        self._response = ResponseTags() if response_tags else None
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
        if self.in_thought:
            return self._reasoning(held.rstrip())
        rest = self._response.flush() if self._response else ""
        return [Delta("content", rest)] if rest else []

    def _reasoning(self, text: str) -> list[Delta]:
        if not self._begun:
            text = text.lstrip()
        self._begun |= bool(text)
        return [Delta("reasoning", text)] if text else []

    def _content(self, text: str) -> list[Delta]:
        if self._strip_answer and not self._begun:
            text = text.lstrip("\n")
        self._begun |= bool(text)
        if self._response:
            text = self._response.push(text)
        return [Delta("content", text)] if text else []


def split_reasoning(text: str, thinking: bool = True, response_tags: bool = False) -> Split:
    """The thought and the answer of a whole output; either may be empty."""
    stream = ReasoningStream(thinking, response_tags)
    deltas = stream.push(text) + stream.flush()
    return Split(*("".join(piece for part, piece in deltas if part == wanted) for wanted in ("reasoning", "content")))


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag` without completing it."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
