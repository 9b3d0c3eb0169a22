"""`engine.LLM` as the engine loop wants it: messages in, messages out.

Knows nothing about text, threads or HTTP.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from ernie45.config.engine import EngineConfig
from ernie45.config.sampling import Grammar
from ernie45.engine.llm import LLM
from ernie45.engine.request import Request
from ernie45.server.messages import Capacity, Generate, Stats, Tokens

_ANY = Grammar(kind="regex", text=".")
"""Compiled at the start, as the first grammar waits for the table of all tokens (0.4 s for 100,000)."""


class LlmEngine:
    """Implements `engine_loop.Engine`."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._compiler = ThreadPoolExecutor(1, "grammars")

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            max_model_len=self._llm.max_model_len,
            max_num_seqs=self._llm.config.max_num_seqs,
            num_pages=self._llm.stats().num_pages,
            page_size=self._llm.config.page_size,
        )

    @property
    def has_work(self) -> bool:
        return self._llm.has_work

    def prepare(self, request: Generate) -> "Future[None] | None":
        grammar = request.params.grammar
        return None if grammar is None else self._compiler.submit(self._llm.prepare_grammar, grammar)

    def submit(self, request: Generate) -> None:
        self._llm.submit(
            Request(
                request_id=request.request_id,
                inputs=request.prompt,
                params=request.params,
                priority=request.priority,
                adapter=request.adapter,
                cache_salt=request.cache_salt,
            )
        )

    def abort(self, request_id: str) -> None:
        self._llm.abort(request_id)

    def stats(self) -> Stats:
        known = self._llm.stats()
        same = {field.name: getattr(known, field.name) for field in fields(Stats) if hasattr(known, field.name)}
        return Stats(**same, expert_tokens=self._llm.expert_tokens())

    def close(self) -> None:
        self._compiler.shutdown(cancel_futures=True)
        self._llm.close()

    def step(self) -> list[Tokens]:
        return [
            Tokens(
                request_id=event.request_id,
                token_ids=event.token_ids,
                num_tokens=len(event.token_ids) + (event.stop_token_id is not None),
                finish_reason=event.finish_reason,
                num_cached_tokens=event.num_cached_tokens,
                stop_token_id=event.stop_token_id,
                logprobs=event.logprobs,
                prompt_logprobs=event.prompt_logprobs,
                queue_s=event.queue_s,
            )
            for event in self._llm.step()
        ]


def load_engine(folder: Path, config: EngineConfig) -> LlmEngine:
    """Load a model folder into an engine. CheckpointError or ConfigError if it cannot be."""
    llm = LLM.load(folder, config)
    llm.prepare_grammar(_ANY)
    return LlmEngine(llm)
