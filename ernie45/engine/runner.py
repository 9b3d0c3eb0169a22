"""Runs one planned step on the model: host arrays in, drawn tokens out.

Knows nothing about queues, budgets or why these chunks were chosen.

Everything the step needs is laid out on the host first (tokens, positions, pages, the rows of each expert pool), so the
device never waits for a question; one copy to the host brings back the drawn tokens.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ernie45.config.sampling import TokenLogprob
from ernie45.engine.logprobs import prompt_logprobs
from ernie45.engine.request import MediaUnit, StepOutput
from ernie45.engine.sampler import draw_for, sample_with_logprobs
from ernie45.engine.scheduler import Chunk
from ernie45.engine.vision_features import VisionFeatures
from ernie45.model.batch import PackedBatch, pool_rows
from ernie45.model.cache import CacheStep, PagedKVCache
from ernie45.model.multimodal import ErnieModel


class Runner:
    """One model with its KV cache. Not thread-safe: one step at a time."""

    def __init__(self, model: ErnieModel, cache: PagedKVCache, vision_cache_tokens: int) -> None:
        self._model = model
        self._cache = cache
        self._device = model.device
        self.features = VisionFeatures(model, vision_cache_tokens)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> StepOutput:
        """Compute the chunks' tokens into the cache; one drawn token for each chunk that samples, in order."""
        hidden_TD, cu_seqlens = self._hidden(chunks)
        told = self._prompt_logprobs(chunks, hidden_TD, cu_seqlens)
        draws = [draw_for(chunk.request, chunk.end) for chunk in chunks if chunk.samples]
        if not draws:
            return StepOutput([], prompt_logprobs=told)
        token_ids, logprobs = sample_with_logprobs(self._sampled_logits(chunks, hidden_TD, cu_seqlens), draws)
        return StepOutput(token_ids, logprobs, told)

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' tokens into the cache; logits [R, V] after the last token of each chunk that samples."""
        return self._sampled_logits(chunks, *self._hidden(chunks))

    def _hidden(self, chunks: Sequence[Chunk]) -> tuple[Tensor, tuple[int, ...]]:
        """Run the model; hidden states of all tokens, and where each chunk begins among them."""
        cu_seqlens = (0, *accumulate(chunk.end - chunk.start for chunk in chunks))
        batch, features_RD = self._batch(chunks, cu_seqlens)
        out = self._model(batch, cache=self._cache_step(chunks), features_RD=features_RD)
        return out.hidden_TD, cu_seqlens

    def _sampled_logits(self, chunks: Sequence[Chunk], hidden_TD: Tensor, cu_seqlens: tuple[int, ...]) -> Tensor:
        rows = [cu_seqlens[index + 1] - 1 for index, chunk in enumerate(chunks) if chunk.samples]
        if len(rows) < len(hidden_TD):
            hidden_TD = hidden_TD.index_select(0, torch.tensor(rows, dtype=torch.int64, device=self._device))
        return self._model.logits(hidden_TD)

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
                told[request.request_id] = first, prompt_logprobs(rows, self._model.logits, request.tokens[first:end], num_top)
        return told

    def _batch(self, chunks: Sequence[Chunk], cu_seqlens: tuple[int, ...]) -> tuple[PackedBatch, Tensor | None]:
        token_ids = array("q")
        positions = np.empty((cu_seqlens[-1], 3), dtype=np.int64)
        is_vision = np.zeros(cu_seqlens[-1], dtype=bool)  # generated tokens are text
        for (request, start, end, _), row in zip(chunks, cu_seqlens, strict=False):
            token_ids += request.tokens[start:end]
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
        )
        return batch, features_RD

    def _features(self, chunks: Sequence[Chunk], cu_seqlens: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Rows of the step that are placeholders, and their features, both in order; None and None without pictures."""
        wanted = [
            (chunk, row, unit)
            for chunk, row in zip(chunks, cu_seqlens, strict=False)
            if chunk.request.units and chunk.start < chunk.request.num_prompt_tokens
            for unit in _units(chunk)
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

    def _cache_step(self, chunks: Sequence[Chunk]) -> CacheStep:
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


def _units(chunk: Chunk) -> Iterator[MediaUnit]:
    """Units with tokens in the chunk, in order."""
    request, start, end, _ = chunk
    units = request.units
    for index in range(max(bisect_right(request.unit_starts, start) - 1, 0), len(units)):
        if units[index].start >= end:
            break
        if units[index].end > start:
            yield units[index]
