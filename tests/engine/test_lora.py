"""Adapters by name in one batch: greedy answers equal those of each request alone, and no page is shared across adapters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ernie45.checkpoint.adapter import load_adapter
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import CheckpointError, ConfigError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import SamplingParams
from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.llm import LLM
from ernie45.engine.request import Request
from ernie45.model.batch import pack
from ernie45.model.lora import AdapterRows
from ernie45.model.multimodal import ErnieModel

MakeInput = Callable[..., ModelInput]
NUM_NEW = 10
GREEDY = SamplingParams(max_tokens=NUM_NEW, temperature=0)
NAMES = (None, "a", "b")
PROMPTS = {"text": [13], "image": [4, ("image", (1, 6, 8), 1), 5], "long": [70]}


def write_adapter(folder: Path, config: ModelConfig, *, rank: int, seed: int, head: bool = False) -> Path:
    """An adapter of every kind of projection, as PEFT names them (tests/model/test_lora.py holds that against PEFT)."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {2 * rank}}}')
    generator = torch.Generator().manual_seed(seed)
    width, queries, keys = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (width, queries),
        "self_attn.v_proj": (width, keys),
        "self_attn.o_proj": (queries, width),
        "mlp.shared_experts.gate_proj": (width, config.shared_ffn_size),
        "mlp.shared_experts.down_proj": (config.shared_ffn_size, width),
    }
    modules = {f"model.language_model.layers.2.{name}": shape for name, shape in shapes.items()}
    modules["model.language_model.layers.0.mlp.up_proj"] = (width, config.intermediate_size)
    if head:
        modules["lm_head"] = (width, config.vocab_size)
    tensors = {}
    pool = config.expert_pools[0]
    experts = "base_model.model.model.language_model.layers.1.mlp.text_moe.experts"
    # PEFT lays the experts' ranks side by side, and wraps gate_up_proj inside of down_proj.
    for name, size, out in ((f"{experts}.base_layer", width, 2 * pool.ffn_size), (experts, pool.ffn_size, width)):
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank * pool.num_experts, size, generator=generator) * 0.3
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank * pool.num_experts, generator=generator) * 0.3
    for name, (size, out) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, size, generator=generator) * 0.3
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> ErnieModel:
    model = ErnieModel(config)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="module")
def folders(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    root = tmp_path_factory.mktemp("adapters")
    a = write_adapter(root / "a", config, rank=3, seed=1)
    b = write_adapter(root / "b", config, rank=5, seed=2, head=True)
    return ("a", str(a)), ("b", str(b))


@pytest.fixture(scope="module")
def inputs(make_input: MakeInput) -> dict[str, ModelInput]:
    return {name: make_input(parts, seed=seed) for seed, (name, parts) in enumerate(PROMPTS.items())}


def run(llm: LLM, wanted: list[tuple[ModelInput, str | None]], params: SamplingParams = GREEDY) -> list[tuple[int, ...]]:
    requests = [
        Request(request_id=f"{index}", inputs=item, params=params, adapter=name) for index, (item, name) in enumerate(wanted)
    ]
    for request in requests:
        llm.submit(request)
    while llm.has_work:
        llm.step()
        llm.check_integrity()
    return [request.output_token_ids for request in requests]


@pytest.fixture(scope="module")
def alone(model: ErnieModel, folders: tuple[tuple[str, str], ...], inputs: dict[str, ModelInput]) -> dict:
    """Greedy answers by full recomputation, no engine: the whole sequence through the model for every token."""
    adapters = {name: load_adapter(folder, model) for name, folder in folders}
    return {
        (prompt, name): recompute(model, item, () if name is None else (AdapterRows(adapters[name], None),))
        for prompt, item in inputs.items()
        for name in NAMES
    }


@torch.no_grad()
def recompute(model: ErnieModel, inputs: ModelInput, rows: tuple[AdapterRows, ...]) -> tuple[int, ...]:
    answer: list[int] = []
    for _ in range(NUM_NEW):
        new = np.arange(inputs.next_position, inputs.next_position + len(answer))
        grown = replace(
            inputs,
            token_ids=np.concatenate([inputs.token_ids, np.array(answer, dtype=np.int64)]),
            is_vision=np.concatenate([inputs.is_vision, np.zeros(len(answer), dtype=bool)]),
            positions=np.concatenate([inputs.positions, np.repeat(new[:, None], 3, axis=1)]),
            next_position=inputs.next_position + len(answer),
        )
        hidden_TD = model(replace(pack([grown]), adapters=rows)).hidden_TD
        answer.append(int(model.logits(hidden_TD[-1:], rows).argmax()))
    return tuple(answer)


@pytest.mark.parametrize("budget", [2048, 32])
def test_a_mixed_batch_equals_each_alone(model, folders, inputs, alone, budget: int) -> None:
    config = EngineConfig(page_size=4, num_pages=256, lora_modules=folders, max_num_batched_tokens=budget)
    wanted = [(prompt, name) for prompt in inputs for name in NAMES]
    answers = run(LLM(model, config), [(inputs[prompt], name) for prompt, name in wanted])
    assert answers == [alone[key] for key in wanted]
    for prompt in inputs:
        assert len({alone[prompt, name] for name in NAMES}) == 3, "the adapters must say something"


def test_guesses_are_checked_under_the_requests_adapter(model, folders, inputs, alone) -> None:
    config = EngineConfig(
        page_size=4, num_pages=256, lora_modules=folders, speculation=SpeculationConfig(method="ngram", min_ngram=1)
    )
    llm, wanted = LLM(model, config), [(prompt, name) for prompt in inputs for name in NAMES]
    assert run(llm, [(inputs[prompt], name) for prompt, name in wanted]) == [alone[key] for key in wanted]
    assert llm.stats().num_draft_tokens > 0


def test_pages_are_never_shared_between_adapters(model, folders, inputs, alone) -> None:
    llm = LLM(model, EngineConfig(page_size=4, num_pages=256, lora_modules=folders))
    for name in NAMES:
        before = llm.stats().num_hit_tokens
        assert run(llm, [(inputs["long"], name)]) == [alone["long", name]]
        assert llm.stats().num_hit_tokens == before, f"{name} found pages of another"
        assert run(llm, [(inputs["long"], name)]) == [alone["long", name]]
        assert llm.stats().num_hit_tokens == before + 68, f"{name} did not find its own"


def test_the_same_adapter_under_two_names_shares_pages(model, folders, inputs) -> None:
    """What a page holds depends on the adapter's numbers and not on its name, which may mean another one after a restart."""
    llm = LLM(model, EngineConfig(page_size=4, num_pages=256, lora_modules=folders))
    llm.add_adapter("also a", folders[0][1])
    run(llm, [(inputs["long"], "a")])
    run(llm, [(inputs["long"], "also a")])
    assert llm.stats().num_hit_tokens == 68


def test_an_adapter_answers_offline(model, folders, inputs, alone) -> None:
    llm = LLM(model, EngineConfig(page_size=4, num_pages=256, lora_modules=folders))
    for name in NAMES:
        assert [answer.token_ids for answer in llm.generate(list(inputs.values()), GREEDY, adapter=name)] == [
            alone[prompt, name] for prompt in inputs
        ]
        events = llm.stream(inputs["text"], GREEDY, adapter=name)
        assert tuple(token for event in events for token in event.token_ids) == alone["text", name]


def test_prompt_logprobs_are_the_adapters(model, folders, inputs) -> None:
    llm = LLM(model, EngineConfig(page_size=4, num_pages=256, lora_modules=folders))
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    told = []
    for name in NAMES:
        request = Request(request_id="one", inputs=inputs["text"], params=params, adapter=name)
        llm.submit(request)
        while llm.has_work:
            llm.step()
        assert request.prompt_logprobs is not None
        told.append(tuple(entry.logprob for entry in request.prompt_logprobs if entry is not None))
    assert len(set(told)) == 3


def test_an_adapter_of_the_tower_is_refused(model, tmp_path: Path) -> None:
    """Features of a picture are kept for all requests."""
    folder = write_adapter(tmp_path / "eyes", model.config, rank=2, seed=3)
    tower = "base_model.model.model.vision_tower.blocks.0.attn.proj"
    width = model.config.vision.hidden_size
    save_file(
        {f"{tower}.lora_A.weight": torch.ones(2, width), f"{tower}.lora_B.weight": torch.ones(width, 2)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"changes the vision tower .* --merge"):
        LLM(model, EngineConfig(num_pages=64, lora_modules=(("eyes", str(folder)),)))


def test_names(model, folders, inputs) -> None:
    llm = LLM(model, EngineConfig(page_size=4, num_pages=64, lora_modules=folders))
    with pytest.raises(RequestError, match=r"adapter \('c'\) must be one of those loaded \('a', 'b'\)"):
        run(llm, [(inputs["text"], "c")])
    assert not llm.has_work
    with pytest.raises(ConfigError, match="'a'"):
        llm.add_adapter("a", folders[1][1])
    with pytest.raises(CheckpointError, match="no readable"):
        LLM(model, EngineConfig(num_pages=64, lora_modules=(("a", "/nowhere"),)))
    with pytest.raises(RequestError, match="none is loaded"):
        run(LLM(model, EngineConfig(num_pages=64)), [(inputs["text"], "a")])
