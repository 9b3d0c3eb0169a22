"""Parts an answer into its text and its tool calls, all at once or piece by piece, with the same result however it is cut.

Knows nothing about tokens, requests or HTTP: text in, events out.

Nothing is lost. What looks like a call but is none (no JSON, no name, a function that was not offered) stays text, tags
included. A call that breaks after its arguments have begun keeps all of its text, up to the end tag, as its arguments, as
they may have been sent already; so does one that is cut off by the end of the answer. White space around calls is left out.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ernie45.server.tools.call import CallReader
from ernie45.server.tools.formats import ToolFormat


class Content(NamedTuple):
    """Text of the answer, never empty."""

    text: str


class CallStart(NamedTuple):
    """A call begins; index counts the calls of the answer."""

    index: int
    name: str


class CallArguments(NamedTuple):
    """More of the JSON text of a call's arguments, never empty."""

    index: int
    text: str


Event = Content | CallStart | CallArguments


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """How the calls of an answer are found. names: of the functions that were offered. single: the first call ends it."""

    form: ToolFormat
    names: tuple[str, ...]
    single: bool = False

    def stream(self) -> "ToolCallStream":
        """A reader for one answer."""
        return ToolCallStream(self.form, self.names, self.single)


class ToolCallStream:
    """Reads the text behind the thought, whose calls are none; see `reasoning`.

    num_calls: calls so far.
    done: the only call is complete: nothing more will be read.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], single: bool = False) -> None:
        """names: of the functions that were offered. single: there is at most one call, and nothing behind it."""
        self.num_calls = 0
        self.done = False
        self._single = single
        self._form = form
        self._names = names
        self._events: list[Event] = []
        self._space = ""  # held back: it is left out if a tag follows
        self._tag = ""  # held back: the beginning of a tag
        self._any_content = False
        self._behind_tag = False  # white space has no meaning there, and an end tag may come
        self._call: CallReader | None = None
        self._raw = ""  # of the call, with tag and space before it, while it may turn out to be text
        self._broken = False  # the call's arguments are no JSON, and end at the end tag alone
        self._rest = ""  # of a broken call, held back: space and the beginning of the end tag

    def push(self, text: str) -> list[Event]:
        """The events that are certain once this text is known."""
        self._read(text)
        return self._take()

    def flush(self) -> list[Event]:
        """The rest, when the answer ends; call it once."""
        while self._call is not None and not self._call.started:
            self._read(self._give_up())
        if self.done:
            return []
        if self._call is not None:
            self._add_arguments(self._rest)
        elif self._tag or not self._behind_tag:
            self._add_content(self._space + self._tag)
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events)

    def _read(self, text: str) -> None:
        """Read character by character; what a step could not use is read again."""
        position = 0
        while position < len(text) and not self.done:
            character = text[position]
            step = self._text if self._call is None else self._broken_call if self._broken else self._call_text
            again = step(character)
            if again:
                text, position = again + text[position + 1 :], 0
            else:
                position += 1

    def _text(self, character: str) -> str:
        """Hold back white space and what may become a tag; pass on the rest."""
        if not self._tag and character.isspace():
            self._space += character
            return ""
        self._tag += character
        tags = self._possible_tags()
        if self._tag in tags:
            self._read_tag()
            return ""
        if any(tag.startswith(self._tag) for tag in tags):
            return ""
        text, self._tag = self._tag, ""
        self._add_content(self._space + text[0])
        return text[1:]

    def _possible_tags(self) -> list[str]:
        tags = [self._form.start]
        if self._behind_tag:
            tags.append(self._form.end)
        return tags

    def _read_tag(self) -> None:
        if self._tag == self._form.start:
            self._call, self._raw = CallReader(self._names), self._space + self._tag
        else:
            self._behind_tag = True
        self._space = self._tag = ""

    def _add_content(self, text: str) -> None:
        self._space = ""
        if not self._any_content and self._behind_tag:
            text = text.lstrip()
        if text:
            self._events.append(Content(text))
            self._any_content, self._behind_tag = True, False

    def _call_text(self, character: str) -> str:
        call = self._call
        assert call is not None
        was_started = call.started
        call.push(character)
        if not call.unread:
            self._raw += character
        if call.started:
            if not was_started:
                self._events.append(CallStart(self.num_calls, call.name))
                self.num_calls += 1
            self._raw = ""
            self._add_arguments(call.take())
        if call.state == "broken" and not call.started:
            return self._give_up() + character
        if call.state == "complete":
            self._end_call()
        self._broken = call.state == "broken"
        return character if call.unread else ""

    def _broken_call(self, character: str) -> str:
        """Everything up to the end tag belongs to the arguments, but for white space before it."""
        end = self._form.end
        self._rest += character
        if self._rest.endswith(end):
            self._add_arguments(self._rest[: -len(end)].rstrip())
            self._end_call()
            return ""
        num_begun = next(n for n in range(min(len(self._rest), len(end) - 1), -1, -1) if self._rest.endswith(end[:n]))
        sure = self._rest[: len(self._rest) - num_begun].rstrip()
        self._add_arguments(sure)
        self._rest = self._rest[len(sure) :]
        return ""

    def _add_arguments(self, text: str) -> None:
        if text:
            self._events.append(CallArguments(self.num_calls - 1, text))

    def _end_call(self) -> None:
        self._call, self._broken, self._rest, self._raw = None, False, "", ""
        self._behind_tag = True
        self.done = self._single

    def _give_up(self) -> str:
        """It was no call: its start tag is text, and what follows is to be read again as text."""
        raw, self._raw, self._call = self._raw, "", None
        end_of_tag = raw.index(self._form.start) + len(self._form.start)
        self._add_content(raw[:end_of_tag])
        return raw[end_of_tag:]


def read_calls(text: str, form: ToolFormat, names: Collection[str]) -> list[Event]:
    """The events of a whole answer: at most one Content or CallArguments in a row."""
    stream = ToolCallStream(form, names)
    return joined([*stream.push(text), *stream.flush()])


def joined(events: Iterable[Event]) -> list[Event]:
    """One event for each run of pieces of the same text."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and last.index == event.index:
            result[-1] = CallArguments(last.index, last.text + event.text)
        else:
            result.append(event)
    return result
