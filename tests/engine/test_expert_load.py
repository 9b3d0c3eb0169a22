"""Expert load: every routed token is counted once, in its own pool."""

from collections.abc import Callable
from typing import Any

import torch

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.expert_load import ExpertLoad
from ernie45.engine.llm import LLM
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel


def router(pool: Any, experts: list[list[int]], num_experts: int) -> RouterOutput:
    experts_RA = torch.tensor(experts, dtype=torch.int64)
    counts_E = torch.bincount(experts_RA.flatten(), minlength=num_experts)
    return RouterOutput(pool, torch.empty(0), experts_RA, torch.empty(0), counts_E)


def test_steps_add_up() -> None:
    load = ExpertLoad()
    first = [router("text", [[0, 1], [0, 2]], 4), router("text", [[3, 1], [3, 2]], 4)]
    none = [router("vision", [], 2), router("vision", [], 2)]
    load.add(list(zip(first, none, strict=True)))
    assert load.tokens() == {"text": ((2, 1, 1, 0), (0, 1, 1, 2)), "vision": ((0, 0), (0, 0))}
    load.add(list(zip(first, [router("vision", [[1]], 2), router("vision", [[0]], 2)], strict=True)))
    load.add(list(zip(first, none, strict=True)))
    assert load.tokens() == {"text": ((6, 3, 3, 0), (0, 3, 3, 6)), "vision": ((0, 1), (1, 0))}
    load.add([])  # a model without experts
    assert first[0].tokens_per_expert_E.tolist() == [2, 1, 1, 0]


def test_an_engine_counts_what_it_computed(config: ModelConfig, make_input: Callable[..., ModelInput]) -> None:
    llm = LLM(ErnieModel(config), EngineConfig(page_size=4, num_pages=64))
    prompt = make_input([5, ("image", (1, 4, 4), 1), 3])
    [answer] = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=4))
    num_vision = int(prompt.is_vision.sum())
    num_text = len(prompt) - num_vision + len(answer.token_ids) - 1  # the last token is drawn and not computed
    tokens = llm.expert_tokens()
    assert {pool: {sum(layer) for layer in layers} for pool, layers in tokens.items()} == {
        pool.modality: {(num_text if pool.modality == "text" else num_vision) * pool.num_active} for pool in config.expert_pools
    }
