"""Follows JSON as it comes, character by character: what is still valid, where values begin and end.

Knows nothing about what the values mean.
"""

import re
from typing import Literal

_SPACE = " \t\n\r"
_SCALAR_RE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_SCALAR_CHARACTERS = frozenset("+-.0123456789eEaflnrstu")
_HEX = frozenset("0123456789abcdefABCDEF")

Expected = Literal["value", "value_or_end", "key", "key_or_end", "colon", "next", "string", "escape", "scalar", "nothing"]


class JsonScanner:
    """A validating reader of one JSON object. Push its characters one by one; the first must open it.

    depth       objects and arrays that are open.
    expected    what comes next; "nothing" once the object is complete.
    """

    def __init__(self) -> None:
        self.expected: Expected = "value"
        self._open: list[str] = []
        self._in_key = False
        self._num_hex = 0
        self._scalar = ""

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def complete(self) -> bool:
        return self.expected == "nothing"

    def push(self, character: str) -> bool:
        """Whether the text can still become JSON with this character behind it. After a no, push nothing more."""
        if self.expected == "string":
            return self._string(character)
        if self.expected == "escape":
            return self._escape(character)
        if self.expected == "scalar":
            if character in _SCALAR_CHARACTERS:
                self._scalar += character
                return True
            if not _SCALAR_RE.fullmatch(self._scalar):
                return False
            self.expected = "next"
        return character in _SPACE or self._structure(character)

    def _structure(self, character: str) -> bool:
        expected = self.expected
        if expected in ("value", "value_or_end") and (self._open or character == "{"):
            if character == "]" and expected == "value_or_end":
                return self._close(character)
            return self._begin(character)
        if expected in ("key", "key_or_end"):
            if character == '"':
                self.expected, self._in_key = "string", True
                return True
            return character == "}" and expected == "key_or_end" and self._close(character)
        if expected == "colon":
            self.expected = "value"
            return character == ":"
        if expected != "next":
            return False
        if character == ",":
            self.expected = "key" if self._open[-1] == "}" else "value"
            return True
        return self._close(character)

    def _begin(self, character: str) -> bool:
        if character in "{[":
            self._open.append("}" if character == "{" else "]")
            self.expected = "key_or_end" if character == "{" else "value_or_end"
        elif character == '"':
            self.expected, self._in_key = "string", False
        elif character in _SCALAR_CHARACTERS:
            self.expected, self._scalar = "scalar", character
        else:
            return False
        return True

    def _close(self, character: str) -> bool:
        if not self._open or self._open[-1] != character:
            return False
        self._open.pop()
        self.expected = "next" if self._open else "nothing"
        return True

    def _string(self, character: str) -> bool:
        if character == "\\":
            self.expected, self._num_hex = "escape", 0
        elif character == '"':
            self.expected = "colon" if self._in_key else "next"
        return character >= " "

    def _escape(self, character: str) -> bool:
        if self._num_hex:
            self._num_hex -= 1
            self.expected = "escape" if self._num_hex else "string"
            return character in _HEX
        if character == "u":
            self._num_hex = 4
            return True
        self.expected = "string"
        return character in '"\\/bfnrt'
