"""Ends an answer at the first stop string, also where it comes in pieces.

Knows nothing about tokens, thoughts or requests.
"""


class StopStrings:
    """Passes text on until one of the strings is complete; what may become one is held back.

    The string that is complete first counts, of several that end together the longest. It is part of the answer only if
    `include` is set. found: the string that was found.
    """

    def __init__(self, strings: tuple[str, ...] = (), include: bool = False) -> None:
        assert all(strings), strings
        self._strings = strings
        self._include = include
        self._held = ""
        self.found: str | None = None

    @property
    def hit(self) -> bool:
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that is certain to belong to the answer. After a hit, nothing more does."""
        if self.hit or not self._strings:
            return "" if self.hit else text
        text = self._held + text
        found = [(start + len(string), start) for string in self._strings if (start := text.find(string)) >= 0]
        if found:
            end, start = min(found)
            self.found, self._held = text[start:end], ""
            return text[: end if self._include else start]
        certain = len(text) - max(_overlap(text, string) for string in self._strings)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back when the answer ends by itself."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
