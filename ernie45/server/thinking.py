"""Whether a request wants a thought before the answer, by any of several ways, and how long it may be.

Knows nothing about sampling, tools or HTTP.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ernie45.config.errors import RequestError
from ernie45.config.sampling import ThinkingBudget
from ernie45.processor import Processor
from ernie45.server.protocol import ChatRequest, ConversationFields

_SWITCH = {"true": True, "open": True, "false": False, "close": False}
_NO_EFFORT = ("none", "minimal")
# Tokens of thought at most; the other efforts have no bound but the room there is.
_EFFORT_TOKENS = {"low": 1024, "medium": 4096}
_SHARE_OF_MAX_TOKENS = 0.8


def thinking_switch(request: ConversationFields) -> bool | None:
    """What the request says about thinking, by any of five ways; None if nothing. RequestError if two ways disagree.

    An entry of `metadata` has become a field before.
    """
    arguments: Mapping[str, Any] = request.chat_template_kwargs or {}
    options = arguments.get("options")
    if options is not None and (not isinstance(options, dict) or set(options) - {"thinking_mode"}):
        raise RequestError(f"chat_template_kwargs.options ({str(options)[:80]}) must have thinking_mode alone; change it")
    effort = request.reasoning_effort
    given = {
        "enable_thinking": request.enable_thinking,
        "chat_template_kwargs.enable_thinking": _as_switch("enable_thinking", arguments.get("enable_thinking")),
        "chat_template_kwargs.options.thinking_mode": _as_switch("options.thinking_mode", (options or {}).get("thinking_mode")),
        "reasoning_effort": None if effort is None else effort not in _NO_EFFORT,
    }
    said = {name: value for name, value in given.items() if value is not None}
    if len(set(said.values())) > 1:
        names = " and ".join(f"{name} ({'on' if value else 'off'})" for name, value in said.items())
        raise RequestError(f"{names} disagree about thinking; send one of them")
    return next(iter(said.values()), None)


def thought_is_open(token_ids: np.ndarray, think_start_id: int | None, think_end_id: int | None) -> bool:
    """Whether the last thought that begins in the prompt does not end in it."""
    if think_start_id is None:
        return False
    starts = np.flatnonzero(token_ids == think_start_id)
    ends = np.flatnonzero(token_ids == think_end_id) if think_end_id is not None else starts[:0]
    return bool(len(starts) and (not len(ends) or starts[-1] > ends[-1]))


def thinking_budget(request: ChatRequest, max_tokens: int | None, processor: Processor) -> ThinkingBudget | None:
    """The bound on an open thought; None if there is none: nothing was said and the answer itself has no bound.

    `reasoning_max_tokens` goes before `reasoning_effort`.
    """
    if processor.think_end_id is None:
        return None
    limits = []
    if request.reasoning_max_tokens is not None:
        limits = [request.reasoning_max_tokens]
    else:
        limits += [_EFFORT_TOKENS[request.reasoning_effort]] if request.reasoning_effort in _EFFORT_TOKENS else []
        limits += [] if max_tokens is None else [max(int(_SHARE_OF_MAX_TOKENS * max_tokens), 1)]
    if not limits:
        return None
    return ThinkingBudget(max_tokens=min(limits), end_token_ids=(*processor.tokenizer.encode("\n"), processor.think_end_id))


def _as_switch(field: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCH:
        return _SWITCH[value.lower()]
    raise RequestError(f"chat_template_kwargs.{field} ({str(value)[:80]!r}) must be open or close, true or false; change it")
