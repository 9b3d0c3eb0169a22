"""A conversation at the terminal: reads lines, obeys /commands, streams answers.

Knows nothing about how an answer is made (`conversation`).
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

from ernie45.commands.conversation import Conversation, media_source
from ernie45.commands.picture import render
from ernie45.commands.terminal import Terminal
from ernie45.config.errors import Ernie45Error
from ernie45.processor.media import load_image
from ernie45.processor.reasoning import Delta

HELP = """\
/image FILE      add a picture to your next question (path or URL)
/video FILE      add a video to your next question
/thinking        reason before answering: on or off
/clear           forget the conversation
/help            this list
/exit            leave (or Ctrl-D); Ctrl-C stops an answer"""


# A model may write any character; on a terminal, only these of the control characters do no harm.
_HARMLESS = "\n\t"
_CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in _HARMLESS}


def show_answer(deltas: Iterable[Delta], terminal: Terminal, answer_to: TextIO, thought_to: TextIO) -> None:
    """Write a stream as it comes: the thought dimmed, then the answer on a line of its own."""
    on, off = terminal.dim
    in_thought = False
    try:
        for part, text in deltas:
            if part == "reasoning" and not in_thought:
                thought_to.write(f"{on}thinking: ")
                in_thought = True
            elif part == "content" and in_thought:
                thought_to.write(f"{off}\n")
                thought_to.flush()
                in_thought = False
            stream = thought_to if in_thought else answer_to
            stream.write(text.translate(_CONTROL_CHARACTERS))
            stream.flush()
    finally:
        if in_thought:
            thought_to.write(f"{off}\n")
            thought_to.flush()
        answer_to.write("\n")
        answer_to.flush()


def answer_once(conversation: Conversation, question: str, images: Sequence[str], videos: Sequence[str]) -> None:
    """Ask one question; answer to stdout, the rest to stderr where stdout is not a terminal."""
    terminal = Terminal.of(sys.stdout)
    thought_to = sys.stdout if terminal.is_tty else sys.stderr
    show_answer(conversation.ask(question, images, videos), terminal, sys.stdout, thought_to)
    print(Terminal.of(sys.stderr).dimmed(f"({conversation.usage})"), file=sys.stderr)


class Dialogue:
    """Reads questions until /exit or the end of input. Media given at the start belong to the first question."""

    def __init__(self, conversation: Conversation, images: Sequence[str] = (), videos: Sequence[str] = ()) -> None:
        self.conversation = conversation
        self.images = list(images)
        self.videos = list(videos)
        self.terminal = Terminal.of(sys.stdout)
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self._add_image,
            "/video": self._add_video,
            "/thinking": self._switch_thinking,
            "/clear": self._clear,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> None:
        """The loop. An error is printed and the conversation goes on."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() history and line editing

        print(self.terminal.dimmed("Ask, or type /help. Thinking is " + self._thinking_state() + "."))
        while True:
            try:
                line = input("\nyou> ").strip()
            except EOFError:
                print()
                return
            if line == "/exit":
                return
            if line:
                self._obey(line)

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        try:
            if not name.startswith("/"):
                self._ask(line)
            elif name in self.commands:
                self.commands[name](argument.strip())
            else:
                near = get_close_matches(name, [*self.commands, "/exit"], n=1)
                print(f"{name} is not a command; " + (f"did you mean {near[0]}?" if near else "see /help"))
        except Ernie45Error as error:
            print(f"error: {error}")

    def _ask(self, question: str) -> None:
        try:
            show_answer(self.conversation.ask(question, self.images, self.videos), self.terminal, sys.stdout, sys.stdout)
        except KeyboardInterrupt:
            print(self.terminal.dimmed("(stopped; this question is forgotten)"))
            return
        self.images, self.videos = [], []
        print(self.terminal.dimmed(f"({self.conversation.usage})"))

    def _add_image(self, path: str) -> None:
        if not path:
            print("which picture? /image FILE")
            return
        path = _unquoted(path)
        image = load_image(media_source(path))
        self.images.append(path)
        print(render(image, self.terminal))
        print(self.terminal.dimmed(f"{Path(path).name}, {image.width} x {image.height}: goes with your next question"))

    def _add_video(self, path: str) -> None:
        if not path:
            print("which video? /video FILE")
            return
        self.videos.append(_unquoted(path))
        print(self.terminal.dimmed("goes with your next question"))

    def _switch_thinking(self, state: str) -> None:
        if state not in ("", "on", "off"):
            print(f"/thinking ({state!r}) must be on or off")
            return
        self.conversation.set_thinking(state == "on" if state else not self.conversation.settings.thinking)
        print(f"thinking is {self._thinking_state()}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.images, self.videos = [], []
        print("a new conversation")

    def _thinking_state(self) -> str:
        return "on" if self.conversation.settings.thinking else "off"


def _unquoted(path: str) -> str:
    """A path as one drags it into a terminal: without the quotes around it."""
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"" else path
