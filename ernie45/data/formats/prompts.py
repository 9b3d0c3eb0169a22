"""Prompts with answers that can be verified.

Knows nothing about rewards, files or templates.
"""

import json
from collections.abc import Mapping
from typing import Any

from ernie45.config.errors import DataError
from ernie45.data.formats.chat import as_messages, conversation, tools_of
from ernie45.data.formats.files import Raw
from ernie45.data.records import Prompt

PROMPT_KEYS = ("prompt", "question", "problem", "messages")
ANSWER_KEYS = ("answer", "solution", "ground_truth")
_KNOWN = (*PROMPT_KEYS, *ANSWER_KEYS, "domain", "system", "tools", "image", "images", "video", "videos")


def is_prompt(data: Mapping[str, Any]) -> bool:
    """Whether a record has a prompt and an answer to it; a conversation that has its answer is none."""
    messages = data.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    is_answered = isinstance(last, Mapping) and last.get("role") == "assistant"
    keys = [key for key in PROMPT_KEYS if key in data and not (key == "messages" and is_answered)]
    return bool(keys) and any(key in data for key in ANSWER_KEYS)


def verifiable(raw: Raw) -> Prompt:
    """{"prompt", "question", "problem" or "messages": text or messages, "answer", "solution" or "ground_truth": text, number or
    JSON, "domain"?, "system"?, "image(s)"?}; all further fields go to the reward."""
    key = next((key for key in PROMPT_KEYS if raw.data.get(key)), None)
    if key is None:
        raise DataError(f"{raw.origin} has no prompt; add one of {', '.join(PROMPT_KEYS)}")
    messages = as_messages(raw, key, "user")
    if raw.data.get("system"):
        messages = [*as_messages(raw, "system", "system"), *messages]
    filled = conversation(raw, messages, key)
    if filled[-1]["role"] == "assistant":
        raise DataError(f"{raw.origin}: {key} ends with a message of the assistant; leave the answer to `answer`")
    domain = raw.data.get("domain") or ""
    if not isinstance(domain, str):
        raise DataError(f"{raw.origin}: domain ({domain!r}) must be a text; correct it")
    return Prompt(
        messages=filled,
        answer=_answer(raw),
        domain=domain,
        extra={name: value for name, value in raw.data.items() if name not in _KNOWN},
        tools=tools_of(raw),
        origin=raw.origin,
    )


def _answer(raw: Raw) -> str:
    value: Any = next((raw.data[key] for key in ANSWER_KEYS if raw.data.get(key) is not None), None)
    if value is None or value == "" or value == []:
        raise DataError(f"{raw.origin} has a prompt without an answer; add `answer`, what a reward compares with")
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
