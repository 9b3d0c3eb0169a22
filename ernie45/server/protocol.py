"""What clients may send: strict models of OpenAI's chat completion request, with FastDeploy's additions.

Knows nothing about the model or the engine. A field that is not here is refused by name, never dropped.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_METADATA = 16


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MediaUrl(_Strict):
    """Where a picture or a video is."""

    url: str = Field(min_length=1, description="data:...;base64,..., http(s)://..., or file://... if a folder is allowed")
    detail: Literal["auto"] | None = Field(None, description="only auto: the resolution follows the picture")


# Some clients write the address without the object around it.
_MediaUrl = Annotated[MediaUrl, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)]


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: _MediaUrl


class VideoPart(_Strict):
    type: Literal["video_url"]
    video_url: _MediaUrl


def _content_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
    Discriminator(_content_form),
]
TextAndMedia = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]], Tag("parts")],
    Discriminator(_content_form),
]


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(_Strict):
    role: Literal["user"]
    content: TextAndMedia
    name: str | None = None


class AssistantMessage(_Strict):
    role: Literal["assistant"]
    content: Text | None = None
    reasoning_content: str | None = Field(None, description="the thought that led to the content")
    name: str | None = None
    refusal: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    include_usage: bool | None = Field(None, description="send the usage in a last chunk without choices")


class TemplateOptions(_Strict):
    thinking_mode: Literal["open", "close", "true", "false"] | bool | None = Field(None, description="open or close")


class TemplateArguments(_Strict):
    enable_thinking: bool | None = None
    options: TemplateOptions | None = None


class ChatRequest(_Strict):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, description="the conversation, oldest first")
    model: str | None = Field(None, description="a name listed by /v1/models; may be left out")
    stream: bool | None = Field(None, description="send the answer as it comes, as server-sent events")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(
        None, ge=1, description="tokens to generate at most; default: of the model, else what the context has left"
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; default: of the model, else 1")
    top_p: float | None = Field(None, gt=0, le=1, description="default: of the model, else 0.7")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 or -1 keeps all tokens, the default")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="the same seed and request give the same answer")
    stop: str | list[str] | None = Field(None, description="strings that end the answer; the thought is not searched")
    user: str | None = Field(None, description="a name for the end user; has no effect")
    metadata: dict[str, str | bool] | None = Field(None, description="enable_thinking (bool), or tags without effect")
    enable_thinking: bool | None = Field(None, description="whether to think before answering; default: yes, if the model can")
    chat_template_kwargs: TemplateArguments | None = None


# Fields of OpenAI's and FastDeploy's requests that this server cannot act on, with the values that ask for nothing.
# null always asks for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "bad_words": ([],),
    "bad_words_token_ids": ([],),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "reasoning_max_tokens": (),
    "chat_template": (),
    "disable_chat_template": (False,),
    "structural_tag": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "return_token_ids": (False,),
    "prompt_token_ids": (),
    "completion_token_ids": (),
    "max_streaming_response_tokens": (1,),
    "mm_hashes": (),
    "logits_processors_args": (),
    "request_id": (),
}
