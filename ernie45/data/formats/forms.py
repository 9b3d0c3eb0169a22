"""The forms that a record can have, by name; how they are told apart, and what is made of them.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from ernie45.config.errors import ConfigError, DataError
from ernie45.data.formats import chat, documents, erniekit, pairs, prompts
from ernie45.data.formats.files import Raw
from ernie45.data.records import Document, Kind, Pair, Prompt, Record

NOUNS: dict[type, str] = {
    Record: "conversations with answers",
    Pair: "preference pairs",
    Prompt: "prompts with answers to verify",
    Document: "documents",
}


class Form(NamedTuple):
    """fits: whether a record has it, from its keys. readers: what can be made of it, the first by default."""

    fits: Callable[[Mapping[str, Any]], bool]
    readers: Mapping[type, Callable[[Raw], Kind]]


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: all(data.get(key) is not None for key in keys)


def _question_and_answer(raw: Raw) -> Record:
    return prompts.verifiable(raw).answered()


# The first one that fits is taken.
FORMS: dict[str, Form] = {
    "erniekit-vl": Form(_has("text_info"), {Record: erniekit.vision}),
    "erniekit-dpo": Form(_has("src", "response"), {Pair: erniekit.preference}),
    "erniekit": Form(_has("src", "tgt"), {Record: erniekit.text}),
    "erniekit-pt": Form(lambda data: "tgt" in data and "src" not in data, {Document: erniekit.document}),
    "pairs": Form(lambda data: "chosen" in data and "rejected" in data, {Pair: pairs.preference}),
    "prompts": Form(prompts.is_prompt, {Prompt: prompts.verifiable, Record: _question_and_answer}),
    "openai": Form(_has("messages"), {Record: chat.openai}),
    "completion": Form(_has("prompt", "completion"), {Record: chat.completion}),
    "alpaca": Form(_has("instruction", "output"), {Record: chat.alpaca}),
    "documents": Form(lambda data: "text" in data or isinstance(data.get("content"), list), {Document: documents.document}),
}
AUTO = "auto"


def check_form(name: str, field: str = "format") -> str:
    """The name of a form, or "auto". ConfigError lists them."""
    if name not in FORMS and name != AUTO:
        near = get_close_matches(name, [*FORMS, AUTO], n=1)
        hint = f"; did you mean {near[0]}?" if near else "; choose one"
        raise ConfigError(f"{field} ({name!r}) must be one of {', '.join((AUTO, *FORMS))}{hint}")
    return name


def convert(raw: Raw, want: tuple[type, ...] = (), form: str = AUTO) -> tuple[str, Kind]:
    """The record and the name of its form. want: kinds that are of use; () takes any.

    DataError for a record of no known form, of one that nothing wanted can be made of, or with something wrong in it.
    """
    if not isinstance(raw.data, Mapping):
        raise DataError(f"{raw.origin} must be a JSON object, is {type(raw.data).__name__}; correct it")
    name = next((name for name, item in FORMS.items() if item.fits(raw.data)), "") if form == AUTO else form
    if not name:
        keys = ", ".join(sorted(map(str, raw.data))[:8]) or "none"
        hint = "add the answer to its prompt" if any(key in raw.data for key in prompts.PROMPT_KEYS) else "see docs/data.md"
        raise DataError(f"{raw.origin} has the keys {keys}, which fit none of {', '.join(FORMS)}; {hint}")
    readers = FORMS[name].readers
    kind = next((kind for kind in want if kind in readers), None) if want else next(iter(readers))
    if kind is None:
        wanted = " or ".join(NOUNS[kind] for kind in want)
        if want == (Prompt,) and Record in readers:
            raise DataError(
                f"{raw.origin} is no prompt with an answer to verify (form {name}); add `answer`, end with the question"
            )
        given = f"{name} ({NOUNS[next(iter(readers))]})"
        raise DataError(f"{raw.origin} is of the form {given}, but {wanted} are needed; use another file or stage")
    try:
        return name, readers[kind](raw)
    except KeyError as error:  # a form that was forced upon a record without its keys
        raise DataError(f"{raw.origin} lacks {error.args[0]!r}, which the form {name} needs; use --format {AUTO}") from error
