"""One request's life: its tokens, how many are computed, the pages that hold them, and how it ended.

Knows nothing about scheduling order, tensors or text.
"""

import secrets
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.sampling import SamplingParams, TokenLogprob
from ernie45.engine.history import History

FinishReason = Literal["stop", "length"]
State = Literal["waiting", "running", "finished"]


class MediaUnit(NamedTuple):
    """What the vision tower encodes at once and a chunk never cuts: an image, or two frames of a video.

    key: content hash of the whole picture, the unit's index in it and the request's salt; equal keys have equal features.
    start, end: its placeholder tokens in the sequence. patch_start, patch_end: its rows in `ModelInput.patches`.
    """

    key: tuple[str, int, str | None]
    start: int
    end: int
    grid: tuple[int, int, int]
    patch_start: int
    patch_end: int


def media_units(media: tuple[MediaItem, ...], salt: str | None = None) -> tuple[MediaUnit, ...]:
    """Split every video into its two-frame units; images stay whole. In text order."""
    units: list[MediaUnit] = []
    patch = 0
    for item in media:
        frames, height, width = item.grid
        num_units = max(frames // 2, 1)
        grid = (frames // num_units, height, width)
        num_patches = grid[0] * height * width
        num_tokens = item.length // num_units
        assert num_tokens * num_units == item.length, (item.length, item.grid)
        for index in range(num_units):
            start = item.offset + index * num_tokens
            units.append(
                MediaUnit((item.content_hash, index, salt), start, start + num_tokens, grid, patch, patch + num_patches),
            )
            patch += num_patches
    return tuple(units)


class StepOutput(NamedTuple):
    """What the runner gives the scheduler for one step.

    token_ids        one drawn token for each chunk that samples, in order.
    logprobs         beside each of them its log-probability, None where the request asks for none; empty if nobody asks.
    prompt_logprobs  of request ids that ask: (place of the first token told about, one entry for each from there).
    """

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob | None] = ()
    prompt_logprobs: Mapping[str, tuple[int, list[TokenLogprob]]] = {}


class Event(NamedTuple):
    """What one step gave one request. `token_ids` never has the stop token; `stop_token_id` names it when it came.

    logprobs         one for each of `token_ids`, if the request asks.
    prompt_logprobs  with the first event only, if the request asks: one for each prompt token, None for the first.
    queue_s          seconds from the queue to the first step.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_token_id: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    queue_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer. `token_ids` without the stop token that ended it, if one did (`stop_token_id`).

    stop_logprob     of the stop token, if the request asks for logprobs.
    experts          int16 [S, L, A], where the engine records routing: what each token of prompt and answer but the last was
                     given, the stop token counted, in each MoE layer; -1 where its pool has fewer active experts.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_token_id: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    stop_logprob: TokenLogprob | None = None
    experts: np.ndarray | None = None


class Request:
    """A sequence that grows. The scheduler moves it; the runner reads it.

    tokens               prompt, then generated tokens, including a stop token.
    num_computed_tokens  tokens whose keys and values are in `pages`, or will be after the steps that are planned; the rest is
                         work.
    num_pending_tokens   tokens that planned steps will draw; the next ones after `tokens`.
    draft                guesses for the tokens behind `tokens`, which the planned step computes and checks; mostly none.
    pages                pages of the KV cache, in order; empty unless running. An array, as a step copies it into its table.
    page_keys            content keys of the leading full pages, as far as they have been asked for.
    num_published_pages  leading pages that others can find in the prefix cache.
    awaited_key          key of a page that another request is about to compute; this one waits for it.
    order                (time of arrival, later for a higher `priority`; arrival): the lowest goes first.
    limit                tokens at which it ends with "length".
    history              what penalties, grammars and the like need to know of the tokens; None if nobody asks.
    logprobs             of the generated tokens in `output_token_ids`; None unless asked for.
    prompt_logprobs      of the prompt's tokens as far as they have been computed; None unless asked for.
    stop_logprob         of the stop token that ended it; None unless asked for.
    routing              (first place, experts) of its tokens in the order they were computed; None unless recorded.
    adapter_hash         content of the adapter, set when the engine takes the request; page keys have it and not the name, as
                         the cache on disk outlives names.
    priority, adapter, cache_salt  as in `server.messages.Generate`.
    """

    __slots__ = (
        "adapter",
        "adapter_hash",
        "awaited_key",
        "cache_salt",
        "draft",
        "finish_reason",
        "history",
        "inputs",
        "limit",
        "logprobs",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_pending_tokens",
        "num_prompt_tokens",
        "num_published_pages",
        "order",
        "page_keys",
        "pages",
        "params",
        "priority",
        "prompt_logprobs",
        "queue_s",
        "queued_at",
        "request_id",
        "routing",
        "seed",
        "state",
        "stop_logprob",
        "stop_token_id",
        "tokens",
        "unit_starts",
        "units",
    )

    def __init__(
        self,
        *,
        request_id: str,
        inputs: ModelInput,
        params: SamplingParams,
        priority: int = 0,
        adapter: str | None = None,
        cache_salt: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.queued_at = time.monotonic()
        self.queue_s: float | None = None
        self.priority = priority
        self.adapter = adapter
        self.adapter_hash: str | None = None
        self.cache_salt = cache_salt
        self.inputs = inputs
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.units = media_units(inputs.media, cache_salt)
        self.unit_starts = [unit.start for unit in self.units]
        self.tokens = array("q", np.ascontiguousarray(inputs.token_ids, dtype=np.int64).tobytes())
        self.num_prompt_tokens = len(self.tokens)
        self.limit = len(self.tokens) + params.max_tokens if params.max_tokens is not None else 2**62
        self.num_computed_tokens = self.num_pending_tokens = self.num_cached_tokens = 0
        self.draft: tuple[int, ...] = ()
        self.pages = array("q")
        self.page_keys: list[bytes] = []
        self.num_published_pages = 0
        self.awaited_key: bytes | None = None
        self.order: tuple[float, int] = (priority, 0)
        self.state: State = "waiting"
        self.finish_reason: FinishReason | None = None
        self.stop_token_id: int | None = None
        self.stop_logprob: TokenLogprob | None = None
        self.routing: list[tuple[int, np.ndarray]] | None = None
        self.history: History | None = None
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if params.prompt_logprobs is None else [None]

    def begin(self) -> None:
        """Leave the queue; the first time, note how long that took."""
        self.state = "running"
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.queued_at

    @property
    def owes_prompt_logprobs(self) -> bool:
        """Whether prompt tokens are still to be told about, so that the prompt must be computed and not found in the cache."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether all but the last of its tokens are computed, and all are known."""
        return self.state == "running" and not self.num_pending_tokens and len(self.tokens) - self.num_computed_tokens == 1

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        """Generated tokens, without the stop token that ended them."""
        end = -1 if self.stop_token_id is not None else None
        return tuple(self.tokens[self.num_prompt_tokens : end])

    def positions(self, start: int, end: int) -> np.ndarray:
        """Rope positions int64 [end - start, 3] of tokens start to end; generated tokens are text and count on all axes."""
        num_prompt = self.num_prompt_tokens
        if end <= num_prompt:
            return self.inputs.positions[start:end]
        first = max(start, num_prompt)
        origin = self.inputs.next_position - num_prompt
        generated = np.repeat(np.arange(origin + first, origin + end, dtype=np.int64)[:, None], 3, axis=1)
        if start >= num_prompt:
            return generated
        return np.concatenate([self.inputs.positions[start:num_prompt], generated])

    def extend_prompt_logprobs(self, first: int, entries: Sequence[TokenLogprob]) -> None:
        """Take those of the prompt's tokens from place `first` on; what was told before a preemption is not told again."""
        told = self.prompt_logprobs
        assert told is not None, self.request_id
        assert first <= len(told), (first, len(told))
        told.extend(entries[len(told) - first :])

    def append(self, token_id: int, logprob: TokenLogprob | None = None) -> Event:
        """Take one generated token; sets `finish_reason` when it is a stop token or reaches the limit."""
        tokens = self.tokens
        tokens.append(token_id)
        num_tokens = len(tokens)
        visible: tuple[int, ...] = (token_id,)
        if token_id in self.params.stop_token_ids:
            # A stop where the grammar's text is not whole was forced, as nothing else could follow: the answer is cut off.
            is_whole = self.history is None or self.history.is_whole()
            self.finish_reason, self.stop_token_id, visible = "stop" if is_whole else "length", token_id, ()
        elif num_tokens >= self.limit:
            self.finish_reason = "length"
        logprobs: tuple[TokenLogprob, ...] | None = None
        if self.logprobs is not None:
            assert logprob is not None, self.request_id
            logprobs = (logprob,) if visible else ()
            self.stop_logprob = None if visible else logprob
            self.logprobs += logprobs
        told = self.prompt_logprobs
        # Not by Event(): that alone would cost as much as all the rest, for each token of each request.
        return tuple.__new__(
            Event,
            (
                self.request_id,
                visible,
                self.finish_reason,
                self.stop_token_id,
                self.num_prompt_tokens,
                self.num_cached_tokens,
                logprobs,
                None if told is None or num_tokens > self.num_prompt_tokens + 1 else tuple(told),
                self.queue_s,
            ),
        )

    def take(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None] = ()) -> Event:
        """Take what a step drew behind the known tokens and behind each guess of the draft: what is behind a wrong guess, or
        behind the end of the answer, does not count."""
        draft, self.draft = self.draft, ()
        event = self.append(token_ids[0], logprobs[0] if logprobs else None)
        for index, guess in enumerate(draft):
            if self.finish_reason is not None or guess != token_ids[index]:
                break
            more = self.append(token_ids[index + 1], logprobs[index + 1] if logprobs else None)
            event = more._replace(
                token_ids=event.token_ids + more.token_ids,
                logprobs=None if event.logprobs is None else event.logprobs + (more.logprobs or ()),
                prompt_logprobs=event.prompt_logprobs,
            )
        return event

    def completion(self) -> Completion:
        """The answer of a finished request."""
        assert self.finish_reason is not None, self.request_id
        return Completion(
            token_ids=self.output_token_ids,
            finish_reason=self.finish_reason,
            stop_token_id=self.stop_token_id,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            prompt_logprobs=None if self.prompt_logprobs is None else tuple(self.prompt_logprobs),
            stop_logprob=self.stop_logprob,
            experts=None if self.routing is None else joined(self.routing, len(self.tokens) - 1),
        )


def joined(parts: Sequence[tuple[int, np.ndarray]], num_tokens: int) -> np.ndarray:
    """Experts [num_tokens, L, A] from parts (first place, rows); later parts go over earlier ones."""
    out = np.full((num_tokens, *parts[0][1].shape[1:]), -1, dtype=np.int16)
    for start, rows in parts:
        end = min(start + len(rows), num_tokens)
        out[start:end] = rows[: max(end - start, 0)]
    return out
