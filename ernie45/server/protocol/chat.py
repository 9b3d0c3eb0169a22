"""The body of a chat request.

Knows nothing about what becomes of it.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ernie45.server.protocol.base import ApiRequest, Strict, TokenId
from ernie45.server.protocol.parts import Message
from ernie45.server.protocol.sampling import MAX_TOKENS, MAX_TOP_LOGPROBS, SamplingFields
from ernie45.server.protocol.structured import StructuredFields
from ernie45.server.protocol.tools import ToolFields

MAX_METADATA = 16
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class TemplateOptions(Strict):
    """ERNIE's own switch."""

    thinking_mode: Literal["open", "close", "true", "false"] | bool | None = Field(None, description="open or close")


class ConversationFields(ToolFields, ApiRequest):
    """What makes the prompt of a chat. Ways to switch thinking that disagree are refused."""

    messages: list[Message] | None = Field(None, description="the conversation, oldest first")
    enable_thinking: bool | None = Field(None, description="whether to think before answering; default: yes, if the model can")
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="none and minimal: no thought; low: at most 1024 tokens of thought; medium: 4096; high and xhigh: as "
        "many as there is room for, like the default",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, max_length=64, description="enable_thinking, options.thinking_mode, and what the chat template reads besides"
    )
    chat_template: str | None = Field(
        None, min_length=1, max_length=2**16, description="a template in place of the model's; the server must allow it"
    )
    mm_processor_kwargs: dict[str, Any] | None = Field(
        None,
        max_length=16,
        description="numbers of the picture processing, such as image_max_pixels or video_fps; at most what the server has",
    )
    mm_hashes: list[str | None] | None = Field(
        None, max_length=4096, description="one for each picture in order: what its uuid would be (FastDeploy); null for none"
    )


class ChatRequest(SamplingFields, StructuredFields, ConversationFields):
    """Body of POST /v1/chat/completions. messages or prompt_token_ids must be given."""

    parallel_tool_calls: bool | None = Field(None, description="whether one answer may have several calls; default: yes")
    reasoning_max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="tokens of thought at most, then it is closed; default: 0.8 of max_tokens, if that is given",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="tokens to generate at most; default: of the model, else what the context has left",
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="the same as max_tokens")
    logprobs: bool | None = Field(None, description="send the log-probability of every token of the answer")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="with logprobs: the likeliest tokens to list beside each"
    )
    metadata: dict[str, Any] | None = Field(
        None,
        max_length=MAX_METADATA,
        description="tags without effect; an entry named like a field that says how to generate, such as enable_thinking, is "
        "taken as that field (FastDeploy)",
    )
    disable_chat_template: bool | None = Field(
        None, description="send the text of the only message to the model as it is, control tokens included"
    )
    prompt_token_ids: list[TokenId] | None = Field(None, min_length=1, description="the whole prompt, in place of messages")
    completion_token_ids: list[TokenId] | None = Field(None, description="the beginning of the answer, which goes on behind it")

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "logits_processors_args": (),
    }


# Not the conversation and not how it is answered over HTTP: an entry of such a name is a mistake and refused.
_TOP_LEVEL_ONLY = {
    "messages", "metadata", "model", "stream", "stream_options", "prompt_token_ids", "completion_token_ids", "request_id"
}  # fmt: skip
ChatRequest.metadata_fields = frozenset(ChatRequest.model_fields) - _TOP_LEVEL_ONLY
