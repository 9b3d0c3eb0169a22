"""From a checked chat request to a task: what the engine runs and how the answers are read.

Knows nothing about HTTP, threads or how the engine works.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.processor import Processor
from ernie45.processor.reasoning import has_response_tags
from ernie45.processor.source import is_url
from ernie45.processor.template import ChatTemplate
from ernie45.server.errors import ApiError
from ernie45.server.job import Job, ServedModel, Task
from ernie45.server.media import MediaRequest
from ernie45.server.protocol import AssistantMessage, ChatRequest, ConversationFields, Message, UserMessage
from ernie45.server.protocol.parts import ImagePart, TextPart, ToolMessage, VideoPart
from ernie45.server.protocol.sampling import SamplingFields
from ernie45.server.sampling import sampling_params, seeds, stop_strings
from ernie45.server.thinking import thinking_budget, thinking_switch, thought_is_open
from ernie45.server.tool_choice import answer_grammar, in_order_of_calls, tool_use, tools_of

_MAX_CHARACTERS_PER_TOKEN = 64  # on average; long runs of one character come near it
_MIN_TOKENS_PER_PICTURE = 3  # itself and its two markers
_TEMPLATE_SWITCHES = ("enable_thinking", "options")


def translate(request: ChatRequest, model: ServedModel) -> Task:
    """Decodes and encodes what the request brings, so it may take seconds. ApiError or Ernie45Error for a bad one."""
    prompt = chat_prompt(request, model)
    processor = model.processor
    tools = tool_use(request, model.tool_format)
    thinking = thought_is_open(prompt.token_ids, processor.think_start_id, processor.think_end_id)
    job = Job(
        prompt=prompt,
        params=_params(request, model, thinking),
        thinking=thinking,
        response_tags=has_response_tags(processor.tokenizer, thinking),
        stop=stop_strings(request.stop),
        include_stop=bool(request.include_stop_str_in_output),
        own_stop_ids=tuple(request.stop_token_ids or ()),
        skip_special_tokens=request.skip_special_tokens is not False,
        tools=tools,
        resumed=tuple(request.completion_token_ids or ()),
    )
    name, adapter = choose_model(request.model, model)
    jobs = tuple(replace(job, params=params) for params in seeds(job.params, request.n or 1))
    return replace(task_fields(request), jobs=jobs, model=name, adapter=adapter)


def chat_prompt(request: ChatRequest, model: ServedModel) -> ModelInput:
    """The prompt of a chat request: its messages through the template, the text of one, or token ids; then what is resumed.

    What surely does not fit into the context is refused before any work is done for it.
    """
    wanted = thinking_switch(request)
    prompt = _prompt(request, model)
    if request.completion_token_ids:
        prompt = _resumed(prompt, request.completion_token_ids, model.processor)
    elif wanted is not None:
        _check_thought(prompt, wanted, templated=not (request.prompt_token_ids or request.disable_chat_template), model=model)
    return prompt


def conversation_prompt(request: ConversationFields, model: ServedModel, add_generation_prompt: bool = True) -> ModelInput:
    """The messages through the template."""
    messages = request.messages or []
    template = _template(request, model)
    tools = tools_of(request)
    _check_messages(messages, model)
    check_text_fits("tools", json.dumps(tools), model.max_model_len)
    dicts = [message.model_dump(exclude_none=True) for message in in_order_of_calls(messages)]
    thinking = thinking_switch(request) is not False
    return model.processor.encode_chat(dicts, thinking, add_generation_prompt, tools, media=model.media, template=template)


def task_fields(request: SamplingFields) -> Task:
    """What both kinds of requests say about the whole task; jobs and model are for the caller to add."""
    options = request.stream_options
    if options is not None and not request.stream:
        raise RequestError("stream_options is only for streams; leave it out or set stream to true")
    usage, continuous = (options.include_usage, options.continuous_usage_stats) if options else (None, None)
    if continuous and usage is False:
        raise RequestError("stream_options.continuous_usage_stats (true) and include_usage (false) disagree; send one of them")
    return Task(
        jobs=(),
        model="",
        request_id=request.request_id,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
        stream=bool(request.stream),
        include_usage=bool(usage or continuous),
        continuous_usage=bool(continuous),
        tokens_per_event=request.max_streaming_response_tokens,
        return_token_ids=bool(request.return_token_ids),
    )


def media_request(request: ConversationFields, model: ServedModel) -> MediaRequest | None:
    """What is to be loaded before a request is translated, if anything. RequestError for what surely does not fit."""
    messages = request.messages or []
    if not any(part.type != "text" for message in messages for part in _parts(message)):
        for name in ("mm_hashes", "mm_processor_kwargs"):
            if getattr(request, name):
                raise RequestError(f"{name} has no effect without pictures in messages; leave it out")
        return None
    _check_messages(messages, model)
    return MediaRequest(
        messages=[message.model_dump(exclude_none=True) for message in messages],
        max_tokens=model.max_model_len,
        cache_salt=getattr(request, "cache_salt", None),
        kwargs=request.mm_processor_kwargs,
        hashes=request.mm_hashes,
    )


def _parts(message: Message) -> Sequence[TextPart | ImagePart | VideoPart]:
    return message.content if isinstance(message, UserMessage) and not isinstance(message.content, str) else ()


def choose_model(name: str | None, model: ServedModel) -> tuple[str, str | None]:
    """The name to answer with and the adapter to use. ApiError (404) for a model that is not served here.

    `default` is FastDeploy's name for the only one.
    """
    if name is None or name == "default" or name in model.names:
        return model.names[0], None
    if name in model.adapters:
        return name, name
    known = " or ".join(map(repr, (model.names[0], *model.adapters)))
    raise ApiError(
        404, f"model ({name[:80]!r}) is not served here; use {known} or leave it out", param="model", code="model_not_found"
    )


def _prompt(request: ChatRequest, model: ServedModel) -> ModelInput:
    messages, ids = request.messages or [], request.prompt_token_ids
    if ids is not None or request.disable_chat_template:
        _check_no_template(request)
    if bool(messages) == (ids is not None):
        rule = "are both given; send one of them" if ids is not None else "are both missing or empty; send messages"
        raise ApiError(400, f"messages and prompt_token_ids {rule}", param="messages", code="invalid_value")
    if ids is not None:
        _check_fits("prompt_token_ids", len(ids), "tokens", 1, model.max_model_len)
        return model.processor.encode_ids(ids, "prompt_token_ids")
    if request.disable_chat_template:
        _check_messages(messages, model)
        return _untemplated(messages, model.processor)
    return conversation_prompt(request, model)


def _template_arguments(request: ConversationFields) -> dict[str, Any]:
    return {name: value for name, value in (request.chat_template_kwargs or {}).items() if name not in _TEMPLATE_SWITCHES}


def _check_no_template(request: ChatRequest) -> None:
    instead = "disable_chat_template" if request.prompt_token_ids is None else "prompt_token_ids"
    for name, value in (("chat_template", request.chat_template), ("chat_template_kwargs", _template_arguments(request))):
        if value:
            raise RequestError(f"{name} has no effect with {instead}; leave one of them out")


def _template(request: ConversationFields, model: ServedModel) -> ChatTemplate:
    template, arguments = model.processor.template, _template_arguments(request)
    if tools_of(request) or any(isinstance(message, ToolMessage) for message in request.messages or ()):
        template = template.with_tools()
    if request.chat_template is not None:
        if not model.allow_chat_template:
            raise RequestError(
                "chat_template is not allowed by this server, as a template is a program; leave it out, or start the server "
                "with --trust-request-chat-template"
            )
        try:
            template = ChatTemplate(request.chat_template, template.named_tokens)
        except CheckpointError as error:
            raise RequestError(f"chat_template cannot be used: {error}") from error
    return template.with_arguments(arguments) if arguments else template


def _untemplated(messages: Sequence[Message], processor: Processor) -> ModelInput:
    content = messages[0].content
    if len(messages) > 1 or not isinstance(content, str) or not content:
        raise RequestError(
            f"messages ({len(messages)}) must be one message whose content is a text, with disable_chat_template; "
            "join the texts or let the template do it"
        )
    return processor.encode_ids(processor.tokenizer.encode(content, allow_special=True), "messages[0].content")


def _resumed(prompt: ModelInput, ids: Sequence[int], processor: Processor) -> ModelInput:
    """The prompt with the beginning of its answer behind it, at the positions that the answer would have had."""
    more = processor.encode_ids(ids, "completion_token_ids")
    return replace(
        prompt,
        token_ids=np.concatenate([prompt.token_ids, more.token_ids]),
        is_vision=np.concatenate([prompt.is_vision, more.is_vision]),
        positions=np.concatenate([prompt.positions, more.positions + prompt.next_position]),
        next_position=prompt.next_position + more.next_position,
    )


def _params(request: ChatRequest, model: ServedModel, thinking: bool) -> SamplingParams:
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise RequestError(
            f"max_tokens ({request.max_tokens}) and max_completion_tokens ({request.max_completion_tokens}) disagree; send one"
        )
    if request.top_logprobs and not request.logprobs:
        raise RequestError(f"top_logprobs ({request.top_logprobs}) is only with logprobs; set logprobs to true")
    max_tokens = next(iter(limits), model.defaults.max_tokens)
    processor = model.processor
    params = sampling_params(request, model.defaults, processor.tokenizer, processor.stop_token_ids)
    return replace(
        params,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        thinking=thinking_budget(request, max_tokens, processor) if thinking else None,
        grammar=answer_grammar(request, model.tool_format, processor, thinking),
    )


def _check_thought(prompt: ModelInput, wanted: bool, *, templated: bool, model: ServedModel) -> None:
    """A switch that the prompt does not follow must not seem to have worked."""
    thinking = thought_is_open(prompt.token_ids, model.processor.think_start_id, model.processor.think_end_id)
    if wanted and not thinking:
        raise RequestError("enable_thinking (True) is asked for, but this model has no thinking mode; leave it out")
    if not templated and not wanted and thinking:
        raise RequestError("enable_thinking (False) is asked for, but the prompt leaves a thought open; close it there")


def _check_messages(messages: Sequence[Message], model: ServedModel) -> None:
    """RequestError for a conversation that surely does not fit, and for a picture that is no address.

    The processor also reads plain paths, for use from Python; over the network only addresses are meant.
    """
    _check_size(messages, model.max_model_len)
    for index, message in enumerate(messages):
        for number, part in enumerate(_parts(message)):
            source = None if part.type == "text" else part.image_url if part.type == "image_url" else part.video_url
            if source is not None and not is_url(source.url):
                field = f"messages[{index}].content[{number}].{part.type}.url"
                rule = "must begin with data:, http:// or https://; send a data URL (file:// needs --allowed-media-folder)"
                raise RequestError(f"{field} ({source.url[:80]!r}) {rule}")


def _check_size(messages: Sequence[Message], max_model_len: int) -> None:
    """Tokenizing tens of megabytes takes minutes; so does decoding thousands of pictures."""
    num_characters = num_pictures = 0
    for message in messages:
        parts = [message.content] if isinstance(message.content, str) else message.content or []
        texts = [part if isinstance(part, str) else part.text for part in parts if isinstance(part, str) or part.type == "text"]
        num_characters += sum(map(len, texts))
        num_pictures += len(parts) - len(texts)
        if isinstance(message, AssistantMessage):
            calls = (len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
            num_characters += len(message.reasoning_content or "") + sum(calls)
    _check_fits("messages", num_characters, "characters", 1 / _MAX_CHARACTERS_PER_TOKEN, max_model_len)
    _check_fits("messages", num_pictures, "pictures", _MIN_TOKENS_PER_PICTURE, max_model_len)
    _check_fits("messages", len(messages), "messages", 1, max_model_len)


def check_text_fits(field: str, text: str, max_model_len: int) -> None:
    """RequestError for a text that surely has more tokens than the context."""
    _check_fits(field, len(text), "characters", 1 / _MAX_CHARACTERS_PER_TOKEN, max_model_len)


def _check_fits(field: str, number: int, name: str, least_tokens: float, max_model_len: int) -> None:
    if number * least_tokens >= max_model_len:
        raise RequestError(f"{field} ({number} {name}) must fit into {max_model_len} tokens; send fewer")
