"""What clients get, for the OpenAPI document: answers are made as plain dicts, and tests hold them against these models.

Knows nothing about how answers come about.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Sent(BaseModel):
    """A part of an answer: it has nothing that is not listed."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Sent):
    """What was wrong."""

    message: str = Field(description="one line: field, value, rule, way out")
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"] = Field(
        description="the kind of error"
    )
    param: str | None = Field(description="the field that it is about")
    code: str | None = Field(description="a name for programs")


class ErrorBody(Sent):
    """Every error has this form."""

    error: ErrorDetail = Field(description="the error")


class PromptTokensDetails(Sent):
    """Of the prompt's tokens."""

    cached_tokens: int = Field(description="tokens that the cache had")
    image_tokens: int = Field(description="tokens of images")
    video_tokens: int = Field(description="tokens of videos")


class CompletionTokensDetails(Sent):
    """Of the answers' tokens."""

    reasoning_tokens: int = Field(description="tokens of thought, with the tag that closes it")


class Usage(Sent):
    """What was counted. A prompt counts once, however many answers it has."""

    prompt_tokens: int = Field(description="tokens of the prompts")
    completion_tokens: int = Field(description="tokens of the answers, those that end them included")
    total_tokens: int = Field(description="both")
    prompt_tokens_details: PromptTokensDetails = Field(description="more about the prompts")
    completion_tokens_details: CompletionTokensDetails = Field(description="more about the answers")


class TopLogprob(Sent):
    """One token that could have been."""

    token: str = Field(description="its text; a replacement character for part of one")
    logprob: float = Field(description="natural logarithm of its probability; -9999 for none at all")
    bytes: list[int] = Field(description="what it stands for in UTF-8")


class TokenLogprobs(TopLogprob):
    """One token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="the likeliest tokens in its place, likeliest first")


class ChatLogprobs(Sent):
    """Log-probabilities of an answer, its thought included; the token that ended it has none."""

    content: list[TokenLogprobs] = Field(description="one for each token")
    refusal: None = Field(description="only null")


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(Sent):
    """What all answers have."""

    index: int = Field(description="which answer this is; those to one prompt stand together")
    finish_reason: FinishReason | None = Field(description="why it ended; null in a stream while it has not")
    stop_reason: str | int | None = Field(
        None, description="the stop string or stop token that the request named and that ended it"
    )


class CalledFunction(Sent):
    """Which function is to be called, and with what."""

    name: str | None = Field(None, description="the function; in a stream with the first piece of a call only")
    arguments: str = Field(description="JSON of its arguments; empty in the first piece of a stream, then more of it")


class CalledTool(Sent):
    """A call, or in a stream the next piece of one."""

    index: int | None = Field(None, description="in a stream: which call this is")
    id: str | None = Field(None, description="what the result refers to; in a stream with the first piece only")
    type: Literal["function"] | None = Field(None, description="function; in a stream with the first piece only")
    function: CalledFunction = Field(description="the call")


class ChatMessage(Sent):
    """An answer, or in a stream the next piece of it."""

    role: Literal["assistant"] | None = Field(None, description="assistant")
    content: str | None = Field(None, description="the answer")
    reasoning_content: str | None = Field(None, description="the thought; null where the model was not asked to think")
    tool_calls: list[CalledTool] | None = Field(None, description="functions that the model wants called")
    prompt_token_ids: list[int] | None = Field(None, description="with return_token_ids")
    completion_token_ids: list[int] | None = Field(None, description="with return_token_ids; the token that ended it too")


class ChatChoice(Choice):
    """One answer."""

    message: ChatMessage = Field(description="the answer")
    logprobs: ChatLogprobs | None = Field(description="with logprobs")


class ChatCompletion(Sent):
    """The answers to a conversation."""

    id: str = Field(description="chatcmpl- and the request's id")
    object: Literal["chat.completion"] = Field(description="chat.completion")
    created: int = Field(description="when, in seconds since 1970")
    model: str = Field(description="the model or adapter that answered")
    choices: list[ChatChoice] = Field(description="n answers")
    usage: Usage = Field(description="what was counted")


class ChatChunkChoice(Choice):
    """The next piece of one answer."""

    delta: ChatMessage = Field(description="the piece")
    logprobs: ChatLogprobs | None = Field(None, description="with logprobs, of the piece's tokens")


class ChatChunk(Sent):
    """One event of a stream."""

    id: str = Field(description="the same in all events")
    object: Literal["chat.completion.chunk"] = Field(description="chat.completion.chunk")
    created: int = Field(description="when, in seconds since 1970")
    model: str = Field(description="the model or adapter that answers")
    choices: list[ChatChunkChoice] = Field(description="one piece; none in the event with the usage")
    usage: Usage | None = Field(None, description="with stream_options")


class CompletionLogprobs(Sent):
    """Log-probabilities of a text, token by token."""

    tokens: list[str] = Field(description="texts; bytes:\\x.. for part of a character")
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt")
    top_logprobs: list[dict[str, float] | None] = Field(description="the likeliest tokens in its place, and itself")
    text_offset: list[int] = Field(description="characters before it")


class CompletionChoice(Choice):
    """One text, or in a stream the next piece of it."""

    text: str = Field(description="the text, with echo behind the prompt's")
    logprobs: CompletionLogprobs | None = Field(description="with logprobs")
    prompt_token_ids: list[int] | None = Field(None, description="with return_token_ids")
    completion_token_ids: list[int] | None = Field(None, description="with return_token_ids; the token that ended it too")


class Completion(Sent):
    """How texts go on; also one event of a stream."""

    id: str = Field(description="cmpl- and the request's id")
    object: Literal["text_completion"] = Field(description="text_completion")
    created: int = Field(description="when, in seconds since 1970")
    model: str = Field(description="the model or adapter that answered")
    choices: list[CompletionChoice] = Field(description="n texts for each prompt")
    usage: Usage | None = Field(None, description="what was counted; in a stream with stream_options")


class Tokens(Sent):
    """A text or conversation in tokens."""

    count: int = Field(description="how many")
    max_model_len: int = Field(description="tokens of prompt and answer together that a request may have")
    tokens: list[int] = Field(description="their ids")
    token_strs: list[str] | None = Field(None, description="with return_token_strs")


class Detokenized(Sent):
    """Tokens as a text."""

    prompt: str = Field(description="the text")


class ModelCard(Sent):
    """A model or adapter."""

    id: str = Field(description="its name")
    object: Literal["model"] = Field(description="model")
    created: int = Field(description="when the server started, in seconds since 1970")
    owned_by: str = Field(description="ernie45")
    root: str = Field(description="the model itself; of an adapter, the model that it changes")
    parent: str | None = Field(description="of an adapter, the model that it changes")
    max_model_len: int | None = Field(description="tokens of prompt and answer together; null while the model is being loaded")


class ModelList(Sent):
    """What may be asked for by name."""

    object: Literal["list"] = Field(description="list")
    data: list[ModelCard] = Field(description="the model first, then its adapters")


class Status(Sent):
    """How the server is."""

    status: Literal["ok", "loading", "ready", "restarting", "draining", "dead"] = Field(description="ok and ready are good")


class EngineLoad(Sent):
    """What the engine has to do."""

    num_running: int = Field(description="sequences that it computes")
    num_waiting: int = Field(description="sequences that wait for their turn")
    max_num_seqs: int | None = Field(description="sequences in one step at most; null before the model is loaded")
    num_pages: int | None = Field(description="pages of the KV cache")
    num_free_pages: int | None = Field(description="pages that nobody holds")
    num_restarts: int = Field(description="times it was started again")


class Load(Sent):
    """How much the server has to do, and how much it can."""

    server_load: int = Field(description="requests for an answer that are in the server")
    max_num_requests: int = Field(description="of these at most; one more is answered with 429")
    state: Literal["loading", "ready", "restarting", "draining", "dead"] = Field(description="as /ready tells")
    engine: EngineLoad = Field(description="what the engine has to do")


class Version(Sent):
    """Which server this is."""

    version: str = Field(description="of the package ernie45")
