"""Bytes of a request body to a checked request of the kind that is expected, or an error that names the field and a way out.

Knows nothing about the model or the engine.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ernie45.processor.messages import MAX_DEPTH, is_too_deep
from ernie45.server.errors import ApiError
from ernie45.server.protocol import ApiRequest

R = TypeVar("R", bound=ApiRequest)

_MAX_SHOWN = 80
# A name less like a field than this is no slip of the pen.
_LIKE_A_SLIP = 0.8
_NO_BEAMS = "leave it out: there is no beam search"
# What others call it, or have and this server has not.
_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "add_generation_prompt": "leave it out: the answer always begins behind the prompt",
        "allowed_token_ids": "use guided_choice, guided_regex or logit_bias",
        "do_sample": "use temperature: 0 takes the likeliest token",
        "echo": "leave it out, or send a prompt to /v1/completions",
        "guided_decoding_backend": "leave it out: one library constrains all answers",
        "include_reasoning": "use enable_thinking: false, or leave it out and read content alone",
        "length_penalty": _NO_BEAMS,
        "logits_processors": "use logit_bias, bad_words, penalties or structured outputs",
        "max_new_tokens": "use max_tokens",
        "messages": "send messages to /v1/chat/completions",
        "prompt": "send messages, or send the prompt to /v1/completions",
        "prompt_logprobs": "leave it out; /v1/completions gives them with echo and logprobs",
        "thinking": "use enable_thinking",
        "thinking_budget": "use reasoning_max_tokens",
        "thinking_token_budget": "use reasoning_max_tokens",
        "truncate_prompt_tokens": "leave it out: a prompt that is too long is refused",
        "use_beam_search": _NO_BEAMS,
    }
)
# More than any request means, and few enough that a body of the largest size cannot take gigabytes or minutes.
_MAX_CONTAINERS = 2**19
_MAX_VALUES = 2**23
_MAX_KEYS = 2**14
_SURROGATE_RE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_request(body: bytes, model: type[R]) -> R:
    """ApiError (400) for a body that is not JSON or not a request this server can fulfil."""
    data = parse_json(body)
    if not isinstance(data, dict):
        rule = f"the body must be a JSON object, is {_kind(data)}; see /openapi.json"
        raise ApiError(400, rule, code="invalid_json")
    data, moved = _with_metadata(_without_neutral(data, model), model)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False), data, model, moved) from None


def _with_metadata(data: dict[str, Any], model: type[ApiRequest]) -> tuple[dict[str, Any], frozenset[str]]:
    """FastDeploy's older clients put fields into `metadata`, where OpenAI's put tags: entries named like fields are moved.

    The names that were moved come with it. ApiError for one that disagrees with the field itself.
    """
    metadata = data.get("metadata")
    if not model.metadata_fields or not isinstance(metadata, dict):
        return data, frozenset()
    named = [name for name in metadata if name in model.model_fields or name in model.unsupported]
    for name in named:
        if name not in model.metadata_fields:
            rule = f"metadata.{name} has no effect there; put {name} at the top level of the request"
            raise ApiError(400, rule, param=f"metadata.{name}", code="invalid_value")
    moved = {name: _from_tag(model, name, metadata[name]) for name in named}
    for name, value in moved.items():
        if data.get(name) is not None and not _same(data[name], value):
            rule = f"{name} ({_shown(data[name])}) and metadata.{name} ({_shown(value)}) disagree; send one of them"
            raise ApiError(400, rule, param=name, code="invalid_value")
    return data | moved, frozenset(name for name in moved if data.get(name) is None)


def _from_tag(model: type[ApiRequest], name: str, value: Any) -> Any:
    """OpenAI's libraries only let texts into metadata, so true and false may come as texts there."""
    is_switch = model.model_fields[name].annotation == bool | None
    if is_switch and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no Infinity, UTF-8. ApiError (400) otherwise."""
    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS or body.count(b",") > _MAX_VALUES:
        rule = f"the body has too many values (lists and objects {_MAX_CONTAINERS}, commas {_MAX_VALUES} at most); send less"
        raise ApiError(400, rule, code="invalid_json")
    try:
        text = body.decode("utf-8")
        data = json.loads(text, parse_constant=_refuse_constant, object_hook=_not_wide)
        if _SURROGATE_RE.search(text):  # half a character, which no UTF-8 text can have, makes this raise
            json.dumps(data, ensure_ascii=False).encode()
        if not is_too_deep(data):
            return data
        reason = f"it has more than {MAX_DEPTH} levels"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # JSON, UTF-8, or a number with thousands of digits
        reason = str(error).partition("; use sys.")[0]
    raise ApiError(400, f"the body is not valid JSON: {reason}; send UTF-8 JSON", code="invalid_json")


def _not_wide(data: dict[str, Any]) -> dict[str, Any]:
    """Each unknown key is a fault of its own, and costs as much."""
    if len(data) > _MAX_KEYS:
        raise ValueError(f"an object has {len(data)} keys, more than {_MAX_KEYS}")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _without_neutral(data: dict[str, Any], model: type[ApiRequest]) -> dict[str, Any]:
    """Drop fields whose value asks for nothing; refuse those that ask for what this server cannot do."""
    kept = {}
    for name, value in data.items():
        if name not in model.unsupported:
            kept[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in model.unsupported[name]):
            neutral = "".join(f" or set it to {json.dumps(value)}" for value in model.unsupported[name][:1])
            raise ApiError(
                400,
                f"{name} ({_shown(value)}) is not supported by this server; leave it out{neutral}",
                param=name,
                code="unsupported_parameter",
            )
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _api_error(
    errors: Sequence[ErrorDetails], data: Any, model: type[ApiRequest], moved: frozenset[str] = frozenset()
) -> ApiError:
    """The first error, unknown fields before others: they usually explain them."""
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    field, kind = _path(error, data), error["type"]
    if error["loc"] and error["loc"][0] in moved:
        field = f"metadata.{field}"
    if kind == "extra_forbidden":
        return _unknown_field(field, model)
    if kind == "missing":
        return ApiError(400, f"{field} is missing; add it", param=field, code="missing_required_parameter")
    rule = error["msg"][:1].lower() + error["msg"][1:]
    if kind == "union_tag_invalid":
        context = error.get("ctx", {})
        field += "." + str(context.get("discriminator", "")).strip("'")
        rule = f"should be one of {context.get('expected_tags')}"
        return ApiError(400, f"{field} ({_shown(context.get('tag'))}) {rule}; change it", param=field, code="invalid_value")
    if kind == "union_tag_not_found":
        field += "." + str(error.get("ctx", {}).get("discriminator", "")).strip("'")
        return ApiError(400, f"{field} is missing; add it", param=field, code="missing_required_parameter")
    rule = rule.removeprefix("input ").removeprefix("value ")
    return ApiError(400, f"{field} ({_shown(error['input'])}) {rule}; change it", param=field, code="invalid_value")


def _unknown_field(field: str, model: type[ApiRequest]) -> ApiError:
    parent, _, name = field.rpartition(".")
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=_LIKE_A_SLIP) if not parent else []
    way_out = _INSTEAD.get(name, "") if not parent else ""
    way_out = way_out or (f"did you mean {near[0]}?" if near else "leave it out")
    return ApiError(400, f"{field} is not a field of this request; {way_out}", param=field, code="unknown_parameter")


def _path(error: ErrorDetails, data: Any) -> str:
    """messages[0].content[1].text: the location without the names that pydantic gives to alternatives.

    An element that leads nowhere in the data is such a name, unless it is the last one: that is the field itself.
    """
    location = error["loc"]
    path, value = "", data
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(step, int):
            path += f"[{step}]"
            value = value[step] if isinstance(value, list) and step < len(value) else None
        elif isinstance(value, dict) and (step in value or (last and error["type"] in ("missing", "extra_forbidden"))):
            path += f".{step}" if path else step
            value = value.get(step)
    return path or "the body"


def _shown(value: Any) -> str:
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > _MAX_SHOWN:
            return f"{text[:_MAX_SHOWN]}..."
    return text


def _pieces(value: Any) -> Iterator[str]:
    """`repr` bit by bit, as of large values only the beginning is wanted."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield f"{', ' if index else ''}{key[: _MAX_SHOWN + 1]!r}: "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item)
        yield "]"
    else:
        yield repr(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
