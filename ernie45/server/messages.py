"""Everything that passes between the server and its engine: plain frozen dataclasses.

Knows nothing about threads, sockets or how either side works. The two sides share nothing else, so the engine can move to
a process of its own by sending these over a socket.
"""

from dataclasses import dataclass
from typing import Literal

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams, TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """To the engine: begin a request. Its id must be unused.

    priority    requests of a lower number go first; equal ones in order of arrival.
    adapter     name of a LoRA adapter that the engine has loaded; None: the model itself.
    cache_salt  requests share cached pages and vision features only with requests of the same salt.
    """

    request_id: str
    prompt: ModelInput
    params: SamplingParams
    priority: int = 0
    adapter: str | None = None
    cache_salt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Abort:
    """To the engine: drop a request if it is still known. No reply."""

    request_id: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """To the engine: drop everything and end."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an engine can hold. num_cache_tokens: KV positions of all pages together."""

    max_model_len: int
    max_num_seqs: int
    num_pages: int
    page_size: int

    @property
    def num_cache_tokens(self) -> int:
        return self.num_pages * self.page_size


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From the engine: the model is loaded."""

    capacity: Capacity


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """From the engine: a request is queued; its tokens follow."""

    request_id: str


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """From the engine: new tokens of one request; with a finish reason, its last ones.

    token_ids          never has the token that ended the request; `num_tokens` counts it.
    num_cached_tokens  prompt tokens that were not computed because the cache had them.
    stop_token_id      the token that ended the request, if one did.
    logprobs           one for each of `token_ids`, if the request asked for them.
    prompt_logprobs    with the first tokens only: one for each token of the prompt, None for the first.
    """

    request_id: str
    token_ids: tuple[int, ...]
    num_tokens: int
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """From the engine: a request it cannot run. message: one line for the user."""

    request_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Dead:
    """From the engine: it has ended. cause: asked to; by what the user can mend (a bad model folder); by a defect."""

    message: str
    cause: Literal["stopped", "user", "defect"]


Command = Generate | Abort | Stop
Report = Ready | Accepted | Tokens | Refused | Dead
