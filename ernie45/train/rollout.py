"""Rollouts: answers to prompts by our own engine, on the trainer's own weights.

Knows nothing about rewards, losses or which prompts are worth asking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import nn

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.policy import RolloutConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.engine.request import Completion
from ernie45.model.multimodal import ErnieModel
from ernie45.train.lora import LoraParameters

_ADAPTER = "policy"
_PAGE_SIZE = 8  # small, so that the answers of a group share most of their prompt's pages


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sampled answer.

    prompt: its number in the pool. token_ids: int64 [N], the stop token included. logprobs: fp32 [N], by the engine, at the
    sampling temperature. finished: whether it ended by itself. num_cached: tokens of the prompt that were in the prefix cache.
    experts: int16 [S, L, A] of prompt and answer but the last token, where routing is replayed.
    """

    prompt: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finished: bool
    num_cached: int = 0
    experts: np.ndarray | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("token_ids", "logprobs")}
        experts = None if self.experts is None else torch.from_numpy(self.experts.copy())
        plain = {name: getattr(self, name) for name in ("prompt", "finished", "num_cached")}
        return {"experts": experts, **plain, **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Answer":
        """What `state_dict` gave."""
        experts = None if state["experts"] is None else state["experts"].numpy()
        arrays = {name: state[name].numpy() for name in ("token_ids", "logprobs")}
        plain = {name: state[name] for name in ("prompt", "finished", "num_cached")}
        return cls(experts=experts, **plain, **arrays)


class RolloutEngine:
    """The engine of one process. It reads the trainer's parameters where they are: no copy, no reload; what its caches hold of
    older weights is dropped before each rollout. With dtype bfloat16 a copy of the model is brought up to date instead.

    modules: "model", and "lora" where an adapter is under training: then the adapter answers.
    """

    def __init__(self, modules: nn.ModuleDict, config: RolloutConfig, stop_token_ids: tuple[int, ...], seed: int) -> None:
        model = modules["model"]
        assert isinstance(model, ErnieModel), type(model)
        self._model, self._config, self._stop_token_ids, self._seed = model, config, stop_token_ids, seed
        self._lora = dict(modules.items()).get("lora")
        self._llm: LLM | None = None

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self._config.context or self._model.config.max_position_embeddings

    def generate(self, prompts: Sequence[tuple[int, ModelInput]], rollout: int) -> list[list[Answer]]:
        """A group of answers to each prompt (its number, its input): a pure function of weights, prompts and (seed, rollout).

        The answers of a group share their prompt's pages. Whoever calls for the same prompts gets the same bits; a call with
        others beside them may round differently.
        """
        if not prompts:
            return []
        llm = self._refreshed()
        size = self._config.group_size
        inputs = [item for _, item in prompts for _ in range(size)]
        params = [
            replace(self._params(), seed=seed_of(self._seed, rollout, number, sample))
            for number, _ in prompts
            for sample in range(size)
        ]
        completions = llm.generate(inputs, params, adapter=None if self._lora is None else _ADAPTER)
        answers = [_answer(prompts[place // size][0], completion) for place, completion in enumerate(completions)]
        return [answers[start : start + size] for start in range(0, len(answers), size)]

    def close(self) -> None:
        if self._llm is not None:
            self._llm.close()

    def _refreshed(self) -> LLM:
        if self._llm is None:
            model = self._model
            if self._config.dtype == "bfloat16":
                model = ErnieModel(model.config, dtype=torch.bfloat16, device=model.device)
            self._llm = LLM(model, self._engine_config())
        if self._llm.model is not self._model:
            stream(self._model, self._llm.model)
        if self._lora is not None:
            assert isinstance(self._lora, LoraParameters), type(self._lora)
            with torch.no_grad():
                self._llm.adapters.put(_ADAPTER, self._lora.adapter(self._model))
        self._llm.weights_changed()
        return self._llm

    def _engine_config(self) -> EngineConfig:
        most = self._config.max_num_seqs
        return EngineConfig(
            max_num_seqs=most,
            max_num_batched_tokens=max(4096, most),
            max_prefill_tokens_beside_decodes=max(4096, most),  # nobody waits for the next token
            max_model_len=self._config.context or None,
            page_size=_PAGE_SIZE,
            records_routing=self._config.replay_routing,
        )

    def _params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            stop_token_ids=self._stop_token_ids,
            logprobs=0,
            scaled_logprobs=True,
        )


@torch.no_grad()
def stream(source: ErnieModel, target: ErnieModel) -> None:
    """Copy all weights and buffers into another model of the same shape, cast to its dtype."""
    tensors = dict(source.state_dict())
    for name, tensor in target.state_dict().items():
        tensor.copy_(tensors[name])


def seed_of(seed: int, rollout: int, prompt: int, sample: int) -> int:
    """63 bits, a pure function of its arguments: what is drawn depends on nothing else."""
    digest = blake2b(f"{seed}/{rollout}/{prompt}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _answer(prompt: int, completion: Completion) -> Answer:
    token_ids, entries = list(completion.token_ids), list(completion.logprobs or ())
    if completion.stop_token_id is not None:
        assert completion.stop_logprob is not None
        token_ids.append(completion.stop_token_id)
        entries.append(completion.stop_logprob)
    return Answer(
        prompt=prompt,
        token_ids=np.array(token_ids, dtype=np.int64),
        logprobs=np.array([entry.logprob for entry in entries], dtype=np.float32),
        finished=completion.finish_reason == "stop",
        num_cached=completion.num_cached_tokens,
        experts=completion.experts,
    )
