"""Runs one planned step on the model: host arrays in, drawn tokens out.

Knows nothing about queues, budgets or why these chunks were chosen.

Everything the step needs is laid out on the host first (tokens, positions, pages, the rows of each expert pool), so the
device never waits for a question; one copy to the host brings back the drawn tokens.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie45.config.sampling import TokenLogprob
from ernie45.engine.adapters import Adapters
from ernie45.engine.chunks import Chunk, units_between
from ernie45.engine.expert_load import ExpertLoad
from ernie45.engine.logprobs import prompt_logprobs
from ernie45.engine.request import Request, StepOutput
from ernie45.engine.routing import RoutingRecord
from ernie45.engine.sampler import Draw, draw_for, sample, sample_with_logprobs
from ernie45.engine.vision_features import VisionFeatures
from ernie45.model.batch import PackedBatch, pool_rows
from ernie45.model.cache import CacheStep, PagedKVCache
from ernie45.model.moe import experts_by_token
from ernie45.model.multimodal import ErnieModel


class PreparedStep(NamedTuple):
    """A step laid out on the host and on its way to the device.

    unseen: (row of the batch, row among the tokens of the step before) for tokens that the host has not seen.
    """

    chunks: Sequence[Chunk]
    cu_seqlens: tuple[int, ...]
    batch: PackedBatch
    features_RD: Tensor | None
    cache: CacheStep
    draws: list[Draw]
    unseen: list[tuple[int, int]]


class Drawn(NamedTuple):
    """What a step drew, tokens [R] still on the device."""

    tokens_R: Tensor | None
    logprobs: Sequence[TokenLogprob | None]
    prompt_logprobs: dict[str, tuple[int, list[TokenLogprob]]]

    def output(self) -> StepOutput:
        """The same on the host: the one copy of a step."""
        return StepOutput([] if self.tokens_R is None else self.tokens_R.tolist(), self.logprobs, self.prompt_logprobs)


class Runner:
    """One model with its KV cache. Not thread-safe: one step at a time."""

    def __init__(
        self,
        model: ErnieModel,
        cache: PagedKVCache,
        vision_cache_tokens: int,
        adapters: Adapters,
        routing: RoutingRecord | None = None,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._cache = cache
        self._device = model.device
        self.features = VisionFeatures(model, vision_cache_tokens)
        self.expert_load = ExpertLoad()
        self._routing = routing
        self.on_hidden: Callable[[Sequence[Chunk], Tensor], None] | None = None
        """Told of each step's chunks and the model's hidden states before the final norm, from which one can guess ahead."""

    def run(self, chunks: Sequence[Chunk]) -> StepOutput:
        """Compute the chunks' tokens into the cache; one drawn token for each chunk that samples, in order."""
        return self.execute(self.prepare(chunks)).output()

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' tokens into the cache; logits [R, V] after the last token of each chunk that samples."""
        step = self.prepare(chunks)
        return self._sampled_logits(chunks, self._hidden(step), step.cu_seqlens)

    @torch.inference_mode()
    def prepare(self, chunks: Sequence[Chunk], previous: Mapping[Request, int] | None = None) -> PreparedStep:
        """Lay out a step, and encode its pictures. All that it takes from the requests it takes now.

        previous: row of each request among the tokens that the step before draws and that nobody has seen.
        """
        cu_seqlens = (0, *accumulate(chunk.end - chunk.start for chunk in chunks))
        batch, features_RD = self._batch(chunks, cu_seqlens)
        sequences = chunks
        if _only_checks(chunks):
            # Each row as a sequence of its own: the kernels for one new token a sequence, and their numbers, are then the same
            # with a draft and without.
            sequences = [Chunk(request, row, row + 1, False) for request, start, end, _ in chunks for row in range(start, end)]
            batch = replace(batch, cu_seqlens=tuple(range(len(batch) + 1)))
        draws = [
            draw_for(chunk.request, chunk.end - len(chunk.request.draft) + index, chunk.request.draft[:index])
            for chunk in chunks
            if chunk.samples
            for index in range(_num_drawn(chunk))
        ]
        unseen = [
            (end - 1, previous[chunk.request])
            for chunk, end in zip(chunks, cu_seqlens[1:], strict=True)
            if previous and _ends_unseen(chunk)
        ]
        return PreparedStep(chunks, cu_seqlens, batch, features_RD, self.cache_step(sequences), draws, unseen)

    @torch.inference_mode()
    def execute(self, step: PreparedStep, previous_R: Tensor | None = None) -> Drawn:
        """Run a prepared step. previous_R: tokens drawn by the step before, on the device. Asks the device for nothing, unless
        log-probabilities are wanted."""
        if step.unseen:
            assert previous_R is not None
            rows, sources = (torch.tensor(column, device=self._device) for column in zip(*step.unseen, strict=True))
            step.batch.token_ids_T[rows] = previous_R[sources]
        hidden_TD = self._hidden(step)
        told = self._prompt_logprobs(step.chunks, hidden_TD, step.cu_seqlens)
        if not step.draws:
            return Drawn(None, [], told)
        logits_RV = self._sampled_logits(step.chunks, hidden_TD, step.cu_seqlens)
        if any(draw.params.logprobs is not None for draw in step.draws):
            token_ids, logprobs = sample_with_logprobs(logits_RV, step.draws)
            return Drawn(torch.tensor(token_ids), logprobs, told)
        return Drawn(sample(logits_RV, step.draws), [], told)

    def _hidden(self, step: PreparedStep) -> Tensor:
        """Run the model; hidden states of all tokens."""
        out = self._model(step.batch, cache=step.cache, features_RD=step.features_RD)
        if self.on_hidden is not None:
            self.on_hidden(step.chunks, out.pre_norm_TD)
        self.expert_load.add(out.routers)
        if self._routing is not None:
            self._routing.add(step.chunks, step.cache.slots_T, experts_by_token(out.routers, step.batch))
        return out.hidden_TD

    def _sampled_logits(self, chunks: Sequence[Chunk], hidden_TD: Tensor, cu_seqlens: tuple[int, ...]) -> Tensor:
        counts = [_num_drawn(chunk) for chunk in chunks]
        rows = [row for end, count in zip(cu_seqlens[1:], counts, strict=True) for row in range(end - count, end)]
        if len(rows) < len(hidden_TD):
            hidden_TD = hidden_TD.index_select(0, torch.tensor(rows, dtype=torch.int64, device=self._device))
        runs = ((chunk.request.adapter, count) for chunk, count in zip(chunks, counts, strict=True))
        return self._model.logits(hidden_TD, self._adapters.rows(runs, self._device))

    def _prompt_logprobs(
        self, chunks: Sequence[Chunk], hidden_TD: Tensor, cu_seqlens: tuple[int, ...]
    ) -> dict[str, tuple[int, list[TokenLogprob]]]:
        """What this step's hidden states say about prompt tokens that nobody has told about yet, for requests that ask."""
        told: dict[str, tuple[int, list[TokenLogprob]]] = {}
        for chunk, row in zip(chunks, cu_seqlens, strict=False):
            request, num_top = chunk.request, chunk.request.params.prompt_logprobs
            if num_top is None or request.prompt_logprobs is None or not request.owes_prompt_logprobs:
                continue
            first = max(chunk.start + 1, len(request.prompt_logprobs))
            end = min(chunk.end + 1, request.num_prompt_tokens)
            if first < end:  # the hidden state at one place tells about the token at the next
                rows = hidden_TD[row + first - 1 - chunk.start : row + end - 1 - chunk.start]
                head = partial(self._head, request.adapter)
                told[request.request_id] = first, prompt_logprobs(rows, head, request.tokens[first:end], num_top)
        return told

    def _head(self, adapter: str | None, hidden_RD: Tensor) -> Tensor:
        return self._model.logits(hidden_RD, self._adapters.rows([(adapter, len(hidden_RD))], self._device))

    def _batch(self, chunks: Sequence[Chunk], cu_seqlens: tuple[int, ...]) -> tuple[PackedBatch, Tensor | None]:
        token_ids = array("q")
        positions = np.empty((cu_seqlens[-1], 3), dtype=np.int64)
        is_vision = np.zeros(cu_seqlens[-1], dtype=bool)  # generated tokens are text
        for (request, start, end, _), row in zip(chunks, cu_seqlens, strict=False):
            token_ids += request.tokens[start:end]
            token_ids.extend(request.draft)
            if len(token_ids) < row + end - start:
                token_ids.append(0)  # the step before is drawing it
            num_prompt = request.num_prompt_tokens
            if start >= num_prompt and end - start == 1:  # decode: the common case, kept cheap
                positions[row] = request.inputs.next_position + start - num_prompt
                continue
            positions[row : row + end - start] = request.positions(start, end)
            prompt_part = request.inputs.is_vision[start:end]
            is_vision[row : row + len(prompt_part)] = prompt_part
        text, vision = pool_rows(is_vision, self._device)
        feature_rows_R, features_RD = self._features(chunks, cu_seqlens)
        batch = PackedBatch(
            token_ids_T=self._to_device(np.frombuffer(token_ids, dtype=np.int64)),
            positions_TX=self._to_device(positions),
            cu_seqlens=cu_seqlens,
            text_rows=text,
            vision_rows=vision,
            feature_rows_R=feature_rows_R,
            adapters=self._adapters.rows(((chunk.request.adapter, chunk.end - chunk.start) for chunk in chunks), self._device),
        )
        return batch, features_RD

    def _features(self, chunks: Sequence[Chunk], cu_seqlens: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Rows of the step that are placeholders, and their features, both in order; None and None without pictures."""
        wanted = [
            (chunk, row, unit)
            for chunk, row in zip(chunks, cu_seqlens, strict=False)
            if chunk.request.units and chunk.start < chunk.request.num_prompt_tokens
            for unit in units_between(*chunk[:3])
        ]
        if not wanted:
            return None, None
        by_key = self.features.get((chunk.request, unit) for chunk, _, unit in wanted)
        rows, parts = [], []
        for chunk, row, unit in wanted:
            # After a prefix hit a chunk may begin inside a picture.
            first, last = max(unit.start, chunk.start), min(unit.end, chunk.end)
            rows.append(np.arange(row + first - chunk.start, row + last - chunk.start))
            parts.append(by_key[unit.key][first - unit.start : last - unit.start])
        return self._to_device(np.concatenate(rows)), torch.cat(parts)

    def cache_step(self, chunks: Sequence[Chunk]) -> CacheStep:
        """Where the chunks' tokens are written and what they may see."""
        page_size = self._cache.page_size
        table = np.zeros((len(chunks), max(len(chunk.request.pages) for chunk in chunks)), dtype=np.int64)
        slots = array("q")
        for index, (request, start, end, _) in enumerate(chunks):
            pages = np.frombuffer(request.pages, dtype=np.int64)
            table[index, : len(pages)] = pages
            if end - start == 1:
                slots.append(request.pages[start // page_size] * page_size + start % page_size)
            else:
                tokens = np.arange(start, end)
                slots.frombytes((pages[tokens // page_size] * page_size + tokens % page_size).tobytes())
        return CacheStep(
            cache=self._cache,
            slots_T=self._to_device(np.frombuffer(slots, dtype=np.int64)),
            page_table_BN=self._to_device(table),
            context_lens=tuple(chunk.end for chunk in chunks),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _num_drawn(chunk: Chunk) -> int:
    """Tokens that a chunk draws: behind the last known token and behind each guess."""
    return 1 + len(chunk.request.draft) if chunk.samples else 0


def _only_checks(chunks: Sequence[Chunk]) -> bool:
    """Whether a step only decodes, and some request has guesses to check."""
    return any(chunk.request.draft for chunk in chunks) and all(
        chunk.samples and chunk.end - chunk.start == 1 + len(chunk.request.draft) for chunk in chunks
    )


def _ends_unseen(chunk: Chunk) -> bool:
    """Whether the last token of a chunk is one that the step before is drawing."""
    return chunk.end > len(chunk.request.tokens) + len(chunk.request.draft)
