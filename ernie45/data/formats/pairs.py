"""Preference pairs as TRL and others write them.

Knows nothing about files or templates.
"""

from typing import Any

from ernie45.config.errors import DataError
from ernie45.data.formats.chat import as_messages, checked, conversation, tools_of
from ernie45.data.formats.files import Raw
from ernie45.data.records import Messages, Pair

_PROMPTS = ("prompt", "question", "messages", "instruction")


def preference(raw: Raw) -> Pair:
    """{"prompt" or "question": text or messages, "chosen": ..., "rejected": ..., "system"?, "margin"?}

    chosen and rejected: a text, the assistant's messages, or, without prompt, two conversations that begin alike.
    """
    key = next((key for key in _PROMPTS if raw.data.get(key)), None)
    if key is None:
        prompt, chosen, rejected = _split(raw)
    else:
        prompt = as_messages(raw, key, "user")
        chosen, rejected = (_without_prompt(as_messages(raw, side, "assistant"), prompt) for side in ("chosen", "rejected"))
    if raw.data.get("system"):
        prompt = [*as_messages(raw, "system", "system"), *prompt]
    filled = conversation(raw, prompt, key or "chosen")
    return make_pair(raw, filled, _side(raw, "chosen", chosen), _side(raw, "rejected", rejected))


def make_pair(raw: Raw, prompt: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """DataError if the sides are equal or an answer does not follow the prompt."""
    if prompt[-1]["role"] == "assistant":
        raise DataError(f"{raw.origin}: the prompt ends with a message of the assistant; end it with the user's")
    if chosen == rejected:
        raise DataError(f"{raw.origin}: chosen and rejected are equal; a pair needs two different answers")
    for side in (chosen, rejected):
        checked([*prompt, *side], raw)
    margin = raw.data.get("margin")
    if margin is not None and (not isinstance(margin, int | float) or isinstance(margin, bool)):
        raise DataError(f"{raw.origin}: margin ({margin!r}) must be a number; correct it or leave it out")
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=None if margin is None else float(margin),
        tools=tools_of(raw),
        origin=raw.origin,
    )


def _split(raw: Raw) -> tuple[list[Any], list[Any], list[Any]]:
    """Two whole conversations: what they share up to the last common message is the prompt."""
    chosen, rejected = (raw.data.get(side) for side in ("chosen", "rejected"))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise DataError(f"{raw.origin} has no prompt; add one, or give chosen and rejected as lists of messages")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise DataError(f"{raw.origin}: chosen and rejected begin with different messages; add the prompt they share")
    if shared == len(chosen) == len(rejected):
        raise DataError(f"{raw.origin}: chosen and rejected are equal; a pair needs two different answers")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _without_prompt(messages: list[Any], prompt: list[Any]) -> list[Any]:
    return messages[len(prompt) :] if len(messages) > len(prompt) and messages[: len(prompt)] == prompt else messages


def _side(raw: Raw, name: str, messages: list[Any]) -> Messages:
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if not roles or roles[0] != "assistant" or roles[-1] != "assistant":
        raise DataError(f"{raw.origin}: {name} must begin and end with a message of the assistant; correct it")
    return tuple(messages)
