"""What a training file holds, in one form: conversations, preference pairs, prompts with answers, documents.

Knows nothing about files, formats or token ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = tuple[Mapping[str, Any], ...]
"""A conversation in OpenAI's form, as `Processor.encode_chat` takes it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A conversation that ends with an answer to learn.

    trained     for each assistant message in order: whether it may carry loss; None: all may, the settings decide.
    thinking    True: the answer is that of thinking mode, False: of the other; None: it has thoughts or it has none.
    tools       descriptions of tools, for the template.
    source      which part of a mixture it belongs to. origin: file and line, for messages.
    """

    messages: Messages
    trained: tuple[bool, ...] | None = None
    thinking: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two ways to go on from one prompt, the better one first.

    chosen, rejected: messages, of which the first and the last are an assistant's. margin: score of chosen minus rejected, for
    losses with an offset.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    origin: str = ""

    def side(self, chosen: bool) -> Record:
        """The prompt with one of its two continuations."""
        messages = (*self.prompt, *(self.chosen if chosen else self.rejected))
        num_before = sum(message["role"] == "assistant" for message in self.prompt)
        num_after = sum(message["role"] == "assistant" for message in messages) - num_before
        trained = (False,) * num_before + (True,) * num_after
        return Record(messages=messages, trained=trained, tools=self.tools, source=self.source, origin=self.origin)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question whose answer can be verified.

    answer: what a reward compares with. domain: which reward that is, and which answers it is normalised with; "" for the run's
    default. extra: the record's further fields (tests of a program, options of a reward).
    """

    messages: Messages
    answer: str
    domain: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    origin: str = ""

    def answered(self) -> Record:
        """The prompt with its answer said at once, without thoughts."""
        messages = (*self.messages, {"role": "assistant", "content": self.answer})
        return Record(messages=messages, tools=self.tools, source=self.source, origin=self.origin)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text with or without pictures in it, all of it to be learnt.

    parts: of type text, image(_url) and video(_url), in order, as in the content of a message.
    """

    parts: tuple[Mapping[str, Any], ...]
    source: str = ""
    origin: str = ""


Kind = Record | Pair | Prompt | Document
"""Any of them."""
