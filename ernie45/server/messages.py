"""Everything that passes between the server and its engine, which is a process of its own: plain frozen dataclasses.

Knows nothing about processes, sockets or how either side works. The two sides share nothing else; `wire` makes them frames.
"""

from dataclasses import dataclass, field
from typing import Literal

from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams, TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """To the engine: begin a request. Its id must be unused.

    priority    requests of a lower number go first, and take the place of running ones; equal ones in order of arrival. One
                less is worth a minute of waiting, so that others do not wait for ever.
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
class Ping:
    """To the engine: say that you live. Answered between two steps, so a step that never ends gives no answer."""


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
    queue_s            seconds from the engine's queue to the request's first step.
    """

    request_id: str
    token_ids: tuple[int, ...]
    num_tokens: int
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    queue_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """From the engine: the new tokens of all requests that one step advanced, in one message."""

    tokens: tuple[Tokens, ...]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """From the engine: how it is doing. At most every quarter of a second while it works, and once when it turns idle.

    The server keeps the latest as `EngineClient.stats`; counters begin at 0 again when the engine is started again.

    num_running, num_waiting                     requests with pages, and without.
    num_pages, num_free_pages, num_cached_pages  of the KV cache. Cached pages are free ones whose content can still be reused;
                                                 free pages count both.
    num_preemptions      requests that had to give their pages back, since the start.
    num_queried_tokens   prompt tokens looked up in the prefix cache, since the start; num_hit_tokens: found there.
    num_steps            steps of the model since the start.
    num_prompt_tokens    prompt tokens of the requests taken, since the start.
    num_generated_tokens tokens generated since the start, those that ended a request included.
    step_s               seconds spent in steps since the start.
    num_host_hit_tokens, num_disk_hit_tokens  those of num_hit_tokens that were found in the lower tiers.
    num_encoded_units    images and two-frame units encoded since the start; num_encoder_hits: needed, and encoded before.
    num_draft_tokens     tokens proposed by speculation, since the start; num_accepted_tokens: those the model agreed with.
    expert_tokens        expert pool -> for each MoE layer, tokens sent to each of its experts since the start.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    num_cached_pages: int = 0
    num_preemptions: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    step_s: float = 0.0
    num_host_hit_tokens: int = 0
    num_disk_hit_tokens: int = 0
    num_encoded_units: int = 0
    num_encoder_hits: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    expert_tokens: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pong:
    """From the engine: the answer to Ping."""


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


Command = Generate | Abort | Stop | Ping
Report = Ready | Accepted | Step | Stats | Pong | Refused | Dead
