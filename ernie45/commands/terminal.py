"""What the terminal can show, and the few ways in which the commands use it.

Knows nothing about models; without a terminal, or with NO_COLOR, no escape code is ever written.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

Colours = Literal["truecolor", "256", "none"]
_MOST_COLUMNS = 80
_TERMS_WITH_256 = ("xterm", "screen", "tmux", "rxvt", "alacritty", "kitty", "foot", "wezterm")


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """colours: how pictures are shown. blocks: whether the encoding has half blocks. columns: width to keep to."""

    colours: Colours = "none"
    blocks: bool = False
    is_tty: bool = False
    columns: int = _MOST_COLUMNS

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> "Terminal":
        """What is known about the terminal behind a stream."""
        is_tty = stream.isatty()
        return cls(
            colours=_colours(environment) if is_tty else "none",
            blocks=_can_encode(stream, "▀"),
            is_tty=is_tty,
            columns=min(shutil.get_terminal_size().columns, _MOST_COLUMNS),
        )

    @property
    def dim(self) -> tuple[str, str]:
        """What switches dim text on and off."""
        return ("", "") if self.colours == "none" else ("\x1b[2m", "\x1b[0m")

    def bold(self, text: str) -> str:
        """The text, bold where that can be shown."""
        return text if self.colours == "none" else f"\x1b[1m{text}\x1b[0m"

    def dimmed(self, text: str) -> str:
        """The text, dim where that can be shown."""
        return self.dim[0] + text + self.dim[1]


def _colours(environment: Mapping[str, str]) -> Colours:
    term = environment.get("TERM", "")
    if environment.get("NO_COLOR") or term in ("", "dumb"):
        return "none"
    if environment.get("COLORTERM") in ("truecolor", "24bit") or term.endswith("-direct"):
        return "truecolor"
    return "256" if "256" in term or term.startswith(_TERMS_WITH_256) else "none"


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
