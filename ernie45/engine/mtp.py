"""Guesses by the model's own multi-token-prediction module, which has pages in the KV cache like a layer.

Knows nothing about when guessing pays or how guesses are checked.

The module's row at place t joins the model's hidden state there with token t + 1, and says something about token t + 2. So it
runs behind each step on the same rows, once the tokens drawn are known; its last row gives the first guess, and on from there
it goes on with its own output in place of the model's. What is in a page depends on one token more than the page's key says
(the token behind its last): under a shared prefix that row may come from another continuation. That can cost a guess, never
a right answer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ernie45.engine.chunks import Chunk
from ernie45.engine.request import Request
from ernie45.engine.sampler import draw_for, sample
from ernie45.model.batch import PackedBatch, pool_rows
from ernie45.model.cache import CacheStep
from ernie45.model.multimodal import ErnieModel, ModelOutput


class MTPProposer:
    """Draws from the module's distribution as the request draws from the model's, at the same random number: where the two
    distributions agree, so do the tokens. Only the first module is used, over and over."""

    def __init__(self, model: ErnieModel, cache_step: Callable[[Sequence[Chunk]], CacheStep], page_size: int) -> None:
        self._model = model
        self._cache_step = cache_step
        self._page_size = page_size
        self._step: tuple[Sequence[Chunk], Tensor] = ((), torch.empty(0))

    def keep(self, chunks: Sequence[Chunk], pre_norm_TD: Tensor) -> None:
        """The step that has just run, and the model's hidden states of its rows."""
        self._step = chunks, pre_norm_TD

    def forget(self, request_id: str) -> None:
        """Nothing is kept for a request but its pages."""

    @torch.inference_mode()
    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        """So many guesses for each request; fewer where its pages end. All requests of the step before get their rows."""
        ends, output = self._follow()
        counts = {request.request_id: count for request, count in wanted}
        asking = [(request, ends[request.request_id]) for request, _ in wanted if request.request_id in ends]
        guesses: dict[str, list[int]] = {request.request_id: [] for request, _ in wanted}
        while asking:
            assert output is not None
            last_R = torch.tensor([row for _, row in asking], device=self._model.device)
            hidden_RD, previous_RD = output.hidden_TD.index_select(0, last_R), output.pre_norm_TD.index_select(0, last_R)
            draws = []
            for request, _ in asking:
                draft = tuple(guesses[request.request_id])
                draws.append(draw_for(request, request.num_tokens + len(draft), draft))
            drawn = sample(self._model.logits(hidden_RD), draws).tolist()
            for (request, _), token_id in zip(asking, drawn, strict=True):
                guesses[request.request_id].append(token_id)
            going = [
                index for index, (request, _) in enumerate(asking)
                if self._has_room(request, len(guesses[request.request_id]), counts[request.request_id])
            ]  # fmt: skip
            asking = [asking[index] for index in going]
            if asking:
                output = self._next(asking, guesses, previous_RD[going])
                asking = [(request, row) for row, (request, _) in enumerate(asking)]
        return [guesses[request.request_id] for request, _ in wanted]

    def _follow(self) -> tuple[dict[str, int], ModelOutput | None]:
        """Run the module on the rows of the step before whose tokens stand; each request's last row among them."""
        chunks, pre_norm_TD = self._step
        self._step = ((), torch.empty(0))
        kept: list[Chunk] = []
        rows: list[int] = []
        next_ids: list[int] = []
        ends: dict[str, int] = {}
        first = 0
        for request, start, end, samples in chunks:
            size, first = end - start, first + end - start
            if request.state != "running":
                continue
            end = min(end, request.num_computed_tokens)  # behind it are guesses that did not come true
            kept.append(Chunk(request, start, end, samples))
            rows += range(first - size, first - size + end - start)
            next_ids += request.tokens[start + 1 : end + 1]
            if request.num_tokens == end + 1:
                ends[request.request_id] = len(rows) - 1
        if not kept:
            return {}, None
        previous_TD = pre_norm_TD if len(rows) == len(pre_norm_TD) else pre_norm_TD[torch.tensor(rows)]
        return ends, self._run(kept, next_ids, previous_TD)

    def _has_room(self, request: Request, num_guesses: int, count: int) -> bool:
        """Whether one more guess is wanted, and the row that makes it has its place in the request's pages."""
        place = request.num_tokens - 2 + num_guesses
        return num_guesses < count and place < len(request.pages) * self._page_size

    def _next(self, asking: Sequence[tuple[Request, int]], guesses: dict[str, list[int]], previous_RD: Tensor) -> ModelOutput:
        """One row a request, behind its last guess."""
        chunks = []
        for request, _ in asking:
            place = request.num_tokens - 2 + len(guesses[request.request_id])
            chunks.append(Chunk(request, place, place + 1, False))
        return self._run(chunks, [guesses[request.request_id][-1] for request, _ in asking], previous_RD)

    def _run(self, chunks: Sequence[Chunk], next_ids: Sequence[int], previous_TD: Tensor) -> ModelOutput:
        device = self._model.device
        borders = [0]
        for chunk in chunks:
            borders.append(borders[-1] + chunk.end - chunk.start)
        text_rows, vision_rows = pool_rows(np.zeros(borders[-1], dtype=bool), device)
        next_ids_T = torch.tensor(next_ids, dtype=torch.int64, device=device)
        positions = np.concatenate([chunk.request.positions(chunk.start, chunk.end) for chunk in chunks])
        batch = PackedBatch(
            token_ids_T=next_ids_T,
            positions_TX=torch.from_numpy(positions).to(device),
            cu_seqlens=tuple(borders),
            text_rows=text_rows,
            vision_rows=vision_rows,
        )
        return self._model.predict_ahead(0, next_ids_T, previous_TD, batch, cache=self._cache_step(chunks))
