"""One tool call as it comes: a JSON object whose name and arguments are passed on as soon as they are sure.

Knows nothing about the text around the call.
"""

import json
from collections.abc import Container
from typing import Literal

from ernie45.server.tools.json_scan import JsonScanner

_ARGUMENT_KEYS = ("arguments", "parameters")
_NAME_KEY = "name"

State = Literal["open", "complete", "broken"]


class CallReader:
    """Push the characters behind a start tag, one by one.

    Before `started`, a broken call is no call: the name must be known, and the arguments begin as an object must. After it,
    what was passed on cannot be taken back. Missing outer braces are forgiven, as FastDeploy does, and so is what stands
    behind name and arguments.

    state      complete: the object is; broken: no call can have this text.
    unread     whether the last character does not belong to the call.
    started    whether the name is sure; read `name` then.
    """

    def __init__(self, names: Container[str]) -> None:
        """names: of the functions that may be called."""
        self.state: State = "open"
        self.unread = False
        self.started = False
        self.name = ""
        self._names = names
        self._scanner = JsonScanner()
        self._key = ""  # the last one at the first level
        self._value = ""  # text of the key or value at the first level that is being read
        self._arguments = ""  # not passed on yet
        self._in_arguments = False
        self._certain = False  # whether the arguments have begun as an object does
        self._has_arguments = False

    def push(self, character: str) -> None:
        """Read one more character."""
        scanner = self._scanner
        if character == '"' and scanner.depth == 0:
            scanner.push("{")
        before, depth_before = scanner.expected, scanner.depth
        if not scanner.push(character):
            self.unread = True
            self.state = "complete" if self.name and self._has_arguments else "broken"
            return
        if self._in_arguments:
            self._more_arguments(character, before)
        elif depth_before == 1 and scanner.depth == 2:
            self._open_value(character)
        elif depth_before <= 1:
            self._first_level(character, before)
        if self.state == "open" and scanner.complete:
            self._finish()
        self.unread = self.state == "broken"

    def take(self) -> str:
        """The arguments that came since the last time; only after `started`."""
        text, self._arguments = self._arguments, ""
        return text

    def _open_value(self, character: str) -> None:
        if self._key in _ARGUMENT_KEYS and not self._has_arguments:
            self._in_arguments, self._arguments = character == "{", character
            self.state = "open" if self._in_arguments else "broken"

    def _more_arguments(self, character: str, before: str) -> None:
        self._arguments += character
        self._certain |= before == "key_or_end" and self._scanner.expected != "key_or_end"
        if self._scanner.depth == 1:
            self._in_arguments, self._has_arguments = False, True
        self._start()

    def _first_level(self, character: str, before: str) -> None:
        """Follow keys, texts and scalars."""
        expected = self._scanner.expected
        if before in ("string", "escape"):
            self._value += character
            if expected == "colon":
                self._key = json.loads(self._value)
            elif expected == "next":
                self._end_value()
        elif before == "scalar" and expected != "scalar":
            self._end_value()
        elif expected in ("string", "scalar"):
            self._value = (self._value if before == "scalar" else "") + character

    def _end_value(self) -> None:
        value = json.loads(self._value)
        if self._key == _NAME_KEY and not self.name:
            known = isinstance(value, str) and value in self._names
            self.name, self.state = (value, "open") if known else ("", "broken")
        elif self._key in _ARGUMENT_KEYS and not self._has_arguments:
            self._written_arguments(value)
        self._start()

    def _written_arguments(self, value: object) -> None:
        """null for no arguments, or an object written as a text."""
        text = "{}" if value is None else value if isinstance(value, str) else ""
        try:
            is_object = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            is_object = False
        if is_object:
            self._arguments, self._certain, self._has_arguments = text, True, True
        else:
            self.state = "broken"

    def _start(self) -> None:
        self.started |= bool(self.name) and self._certain

    def _finish(self) -> None:
        """The object has ended. A call without arguments has none."""
        if not self._has_arguments:
            self._arguments, self._certain = "{}", True
        self._start()
        self.state = "complete" if self.started else "broken"
