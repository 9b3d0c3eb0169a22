"""The fields that chat and plain completions share: how tokens are chosen, when they end, how they are sent.

Knows nothing about prompts.
"""

from typing import Annotated

from pydantic import Field

from ernie45.server.protocol.base import ApiRequest, Strict, TokenId

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 128
MAX_TOKENS = 2**31 - 1  # more than any context has; what crosses to the engine must fit a machine word
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_LENGTH = 256

Bias = Annotated[float, Field(ge=-100, le=100)]
_Word = Annotated[str, Field(max_length=MAX_BAD_WORD_LENGTH)]
_WordIds = Annotated[list[TokenId], Field(max_length=MAX_BAD_WORD_LENGTH)]


class StreamOptions(Strict):
    """What a stream has besides the answer."""

    include_usage: bool | None = Field(None, description="send the usage in a last chunk without choices")
    continuous_usage_stats: bool | None = Field(None, description="send the usage so far in every chunk, and in a last one")


class SamplingFields(ApiRequest):
    """Fields of every request that generates."""

    model: str | None = Field(None, description="a name listed by /v1/models, of an adapter too; may be left out")
    stream: bool | None = Field(None, description="send the answer as it comes, as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="answers to give; with a seed, answer i has seed + i")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; default: of the model, else 1")
    top_p: float | None = Field(None, gt=0, le=1, description="default: of the model, else 0.7")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 or -1 keeps all tokens, the default")
    min_p: float | None = Field(None, ge=0, le=1, description="least probability as a share of the likeliest token's")
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="before so many tokens nothing ends the answer")
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="above 1 makes tokens of prompt and answer less likely; default: of the model, else 1"
    )
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="taken from a logit each time its token was said")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="taken from the logits of tokens that were said")
    logit_bias: dict[str, Bias] | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="token id, as text: what is added to its logit"
    )
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="the same seed and request give the same answer")
    stop: str | list[str] | None = Field(None, description="strings that end the answer; a thought is not searched")
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024, description="tokens that end the answer")
    include_stop_str_in_output: bool | None = Field(None, description="whether the answer has what ended it; default: no")
    ignore_eos: bool | None = Field(None, description="whether to go on where the model would end; default: no")
    skip_special_tokens: bool | None = Field(None, description="whether control tokens have no text; default: yes")
    bad_words: list[_Word] | None = Field(None, max_length=MAX_BAD_WORDS, description="texts that the answer never has")
    bad_words_token_ids: list[TokenId] | list[_WordIds] | None = Field(
        None, max_length=MAX_BAD_WORDS, description="tokens, or sequences of tokens, that the answer never has"
    )
    max_streaming_response_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="tokens in one event of a stream")
    return_token_ids: bool | None = Field(None, description="send the ids of prompt and answer too; default: no")
    request_id: str | None = Field(None, pattern=r"^[\w.:-]{1,128}$", description="becomes part of the answer's id")
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1, description="lower goes first; default 0")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="cached prefixes are shared only with requests of the same salt"
    )
    user: str | None = Field(None, description="a name for the end user; has no effect")
