"""From a checked chat request to what the engine runs and how the answer is read.

Knows nothing about HTTP, threads or how the engine works.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.processor import Processor
from ernie45.processor.source import is_url
from ernie45.server.errors import ApiError
from ernie45.server.protocol import (
    MAX_METADATA,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    AssistantMessage,
    ChatRequest,
    UserMessage,
)

_MAX_CHARACTERS_PER_TOKEN = 64  # on average; long runs of one character come near it
_MIN_TOKENS_PER_PICTURE = 3  # itself and its two markers
_SWITCH = {"true": True, "open": True, "false": False, "close": False}


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a request gets that says nothing: FastDeploy's values, unless the model's generation_config.json has others."""

    temperature: float = 1.0
    top_p: float = 0.7
    top_k: int = 0
    max_tokens: int | None = None

    @classmethod
    def from_dir(cls, folder: str | Path) -> "SamplingDefaults":
        """Read generation_config.json of a model folder, if there is one. `do_sample: false` means greedy."""
        path = Path(folder) / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = {name: data[name] for name in ("temperature", "top_p", "top_k") if data.get(name) is not None}
            if data.get("max_new_tokens") is not None:
                found["max_tokens"] = data["max_new_tokens"]
            if data.get("do_sample") is False:
                found["temperature"] = 0.0
            SamplingParams(**found)  # checks the ranges
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"generation_config.json ({path}) cannot be used: {error}; correct or remove it") from error
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, ready for the engine. thinking: whether the prompt left a thought open."""

    prompt: ModelInput
    params: SamplingParams
    thinking: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def translate(request: ChatRequest, processor: Processor, defaults: SamplingDefaults, max_model_len: int) -> Job:
    """Fetches, decodes and encodes what the request brings, so it may take seconds. ApiError or Ernie45Error for a bad one.

    max_model_len: tokens of the context; what surely does not fit in it is refused before any work is done for it.
    """
    _check_metadata(request)
    _check_addresses(request)
    _check_size(request, max_model_len)
    wanted = thinking_switch(request)
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    prompt = processor.encode_chat(messages, enable_thinking=wanted is not False)
    thinking = thought_is_open(prompt.token_ids, processor.think_start_id, processor.think_end_id)
    if wanted and not thinking:
        raise RequestError("enable_thinking (True) is asked for, but this model has no thinking mode; leave it out")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is only for streams; leave it out or set stream to true")
    return Job(
        prompt=prompt,
        params=_sampling(request, defaults, processor.stop_token_ids),
        thinking=thinking,
        stop=_stop_strings(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def has_media(request: ChatRequest) -> bool:
    """Whether there are pictures to fetch or decode."""
    return any(
        not isinstance(message.content, str) and any(part.type != "text" for part in message.content)
        for message in request.messages
        if isinstance(message, UserMessage)
    )


def thinking_switch(request: ChatRequest) -> bool | None:
    """What the request says about thinking, by any of four ways; None if nothing. RequestError if two ways disagree."""
    arguments = request.chat_template_kwargs
    mode = arguments.options.thinking_mode if arguments and arguments.options else None
    given = {
        "enable_thinking": request.enable_thinking,
        "metadata.enable_thinking": _metadata_switch(request),
        "chat_template_kwargs.enable_thinking": arguments.enable_thinking if arguments else None,
        "chat_template_kwargs.options.thinking_mode": _SWITCH[mode] if isinstance(mode, str) else mode,
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


def _metadata_switch(request: ChatRequest) -> bool | None:
    value = (request.metadata or {}).get("enable_thinking")
    if isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise RequestError(f"metadata.enable_thinking ({value!r}) must be true or false; change it")
        return value.lower() == "true"
    return value


def _check_metadata(request: ChatRequest) -> None:
    """FastDeploy reads request fields from metadata, OpenAI's clients put tags there: a tag must not look like a field."""
    metadata = request.metadata or {}
    if len(metadata) > MAX_METADATA:
        raise RequestError(f"metadata ({len(metadata)} entries) must have at most {MAX_METADATA}; send fewer")
    for name in metadata:
        if name != "enable_thinking" and name in ChatRequest.model_fields:
            raise RequestError(f"metadata.{name} has no effect there; put {name} at the top level of the request")


def _check_addresses(request: ChatRequest) -> None:
    """The processor also reads plain paths, for use from Python; over the network only addresses are meant."""
    for index, message in enumerate(request.messages):
        if not isinstance(message, UserMessage) or isinstance(message.content, str):
            continue
        for number, part in enumerate(message.content):
            if part.type != "text":
                url = part.image_url.url if part.type == "image_url" else part.video_url.url
                if not is_url(url):
                    field = f"messages[{index}].content[{number}].{part.type}.url"
                    raise RequestError(f"{field} ({url[:80]!r}) must begin with data:, http:// or https://; send a data URL")


def _check_size(request: ChatRequest, max_model_len: int) -> None:
    """Tokenizing tens of megabytes takes minutes; so does decoding thousands of pictures."""
    num_characters = num_pictures = 0
    for message in request.messages:
        parts = [message.content] if isinstance(message.content, str) else message.content or []
        texts = [part if isinstance(part, str) else part.text for part in parts if isinstance(part, str) or part.type == "text"]
        num_characters += sum(map(len, texts))
        num_pictures += len(parts) - len(texts)
        if isinstance(message, AssistantMessage):
            num_characters += len(message.reasoning_content or "")
    for number, name, least in (
        (num_characters, "characters", 1 / _MAX_CHARACTERS_PER_TOKEN),
        (num_pictures, "pictures", _MIN_TOKENS_PER_PICTURE),
        (len(request.messages), "messages", 1),
    ):
        if number * least >= max_model_len:
            raise RequestError(f"messages ({number} {name}) must fit into {max_model_len} tokens; send fewer")


def _sampling(request: ChatRequest, defaults: SamplingDefaults, stop_token_ids: Sequence[int]) -> SamplingParams:
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise RequestError(
            f"max_tokens ({request.max_tokens}) and max_completion_tokens ({request.max_completion_tokens}) disagree; send one"
        )

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return SamplingParams(
        max_tokens=next(iter(limits), defaults.max_tokens),
        temperature=given(request.temperature, defaults.temperature),
        top_p=given(request.top_p, defaults.top_p),
        top_k=max(given(request.top_k, defaults.top_k), 0),
        seed=request.seed,
        stop_token_ids=tuple(stop_token_ids),
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"stop ({len(strings)} strings) must have at most {MAX_STOP_STRINGS}; send fewer")
    for string in strings:
        if not 0 < len(string) <= MAX_STOP_CHARACTERS:
            raise RequestError(f"stop ({string[:80]!r}) must have 1 to {MAX_STOP_CHARACTERS} characters; change it")
    return strings


def check_model(name: str | None, known: Sequence[str]) -> None:
    """ApiError (404) for a model that is not served here. `default` is FastDeploy's name for the only one."""
    if name is not None and name != "default" and name not in known:
        rule = f"model ({name[:80]!r}) is not served here; use {known[0]!r} or leave it out"
        raise ApiError(404, rule, param="model", code="model_not_found")
