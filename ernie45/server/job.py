"""What a request becomes: one task, and in it one job for the engine for each answer that is to be given.

Knows nothing about bodies, HTTP or how the engine works.
"""

from dataclasses import dataclass

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.processor import Processor
from ernie45.processor.media_cache import LoadedMedia
from ernie45.server.sampling import SamplingDefaults
from ernie45.server.tools import TOOL_FORMATS, ToolFormat, ToolUse


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What requests are translated for.

    names          of the model, the one that answers carry first; any of them may be asked for.
    adapters       names of LoRA adapters; asking for one selects it.
    max_model_len  tokens of the context.
    allow_chat_template  whether a request may bring a template, a program of a stranger, of its own.
    tool_format    how the model writes tool calls.
    media          the pictures of the request, where they are loaded already (`media.RequestMedia`).
    owner          whose the request is: of those with its API key; "" on an open server.
    """

    processor: Processor
    defaults: SamplingDefaults
    names: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    max_model_len: int
    allow_chat_template: bool = False
    tool_format: ToolFormat = TOOL_FORMATS["ernie45"]
    media: tuple[LoadedMedia, ...] | None = None
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request to the engine, and how its tokens are read.

    thinking      whether the prompt left a thought open; response_tags: whether the answer may be wrapped in <response> tags.
    stop          strings that end the answer; include_stop: whether what ends it, string or token, belongs to it.
    own_stop_ids  tokens of `params.stop_token_ids` that the request names and not the model.
    tools         how tool calls are found in the answer; None: they are text.
    resumed       tokens at the end of the prompt that are the beginning of the answer.
    prompt_index  which prompt of the request this is; jobs that share one stand together.
    """

    prompt: ModelInput
    params: SamplingParams
    thinking: bool = False
    response_tags: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    own_stop_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    tools: ToolUse | None = None
    resumed: tuple[int, ...] = ()
    prompt_index: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A whole request, ready to run. Choice i of the answer is what jobs[i] gives.

    model             the name that the answer carries.
    tokens_per_event  tokens that one event of a stream has, the last perhaps fewer; None: as they come.
    echo, silent      of plain completions: the text begins with the prompt; nothing is to be generated.
    """

    jobs: tuple[Job, ...]
    model: str
    request_id: str | None = None
    adapter: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    tokens_per_event: int | None = None
    return_token_ids: bool = False
    echo: bool = False
    silent: bool = False
