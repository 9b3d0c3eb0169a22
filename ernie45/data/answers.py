"""Answers to be judged and what judges say of them: shared by rewards in training and by scores in evaluation.

Knows nothing about how an answer was made or how it is judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ernie45.processor.reasoning import THINK_END, split_reasoning


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One answer and what is known of its prompt.

    answer            what the user sees: thoughts and `<response>` tags taken off.
    thoughts          what stands before it, "" if nothing; judges do not see it unless they ask.
    messages          the prompt in OpenAI's form.
    reference         the right answer as the data has it, None if there is none.
    domain            by which judges are chosen and rewards normalised.
    extra             what else the record has: tests, checklist, choices.
    thinking          whether the prompt left a thought open.
    num_thought_ends  how often `</think>` was written.
    num_tokens        of the whole output, thoughts included; 0: not known.
    finished          whether the model ended by itself (not cut off).
    """

    answer: str
    thoughts: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    reference: str | None = None
    domain: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool = False
    num_thought_ends: int = 0
    num_tokens: int = 0
    finished: bool = True

    @classmethod
    def from_output(cls, text: str, thinking: bool, **about: Any) -> "Graded":
        """From everything a model wrote behind a prompt. A thought that never ends leaves an empty answer."""
        thoughts, answer = split_reasoning(text, thinking, response_tags=thinking)
        return cls(answer=answer, thoughts=thoughts, thinking=thinking, num_thought_ends=text.count(THINK_END), **about)

    def without_thoughts(self) -> "Graded":
        """The same with the thoughts hidden."""
        return replace(self, thoughts="") if self.thoughts else self

    @property
    def question(self) -> str:
        """Text of the last user message; pictures and videos are left out."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of(message)
        return ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A judge's word: a value, or the event that kept it from having one.

    value   None if there is an event; callers mask it, they never take it for 0.
    event   its kind, in snake_case, as it is counted: "timeout", "raised_value_error", "no_reference".
    detail  one line about the event, for the log.
    parts   values of the single judges under a composition, by their names.
    """

    value: float | None
    event: str = ""
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.event), (self.value, self.event)

    @classmethod
    def failed(cls, event: str, detail: str = "") -> "Score":
        """No value, for this reason."""
        return cls(value=None, event=event, detail=" ".join(detail.split())[:500])


# What judges a batch: as many scores as answers, in their order.
Grader = Callable[[Sequence[Graded]], list[Score]]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message in OpenAI's form, its text parts joined by line ends."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part.get("type", "text") == "text")


def is_exact(text: str, expected: str) -> bool:
    """Equal, white space at the ends apart."""
    return text.strip() == expected.strip()
