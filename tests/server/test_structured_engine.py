"""A model of random weights, which never saw a tool or a schema, held to both by the real engine behind the real server."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import openai
import pytest
import torch
from pydantic import BaseModel, Field

from ernie45.checkpoint import resolve_model, save_model
from ernie45.config.engine import EngineConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.server.llm_engine import load_engine
from tests.small_model import pools, small_config

SEEDS = range(4)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "forecast", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "stop"}},
]
MESSAGES: Any = [{"role": "user", "content": "hi"}]


class Sum(BaseModel):
    operation: Literal["add", "subtract"]
    numbers: list[Literal[1, 2, 3]] = Field(min_length=2, max_length=2)


@pytest.fixture(scope="module")
def folder(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(
        num_layers=1,
        intermediate_size=64,
        expert_pools=pools(2, 1, text=16),
        shared_ffn_size=16,
        vision=None,
        vocab_size=len(processor.tokenizer) + 3,
        max_position_embeddings=1024,
        tokens=processor.tokens,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "random"
    save_model(ErnieModel(config, dtype=torch.float32), path, layout="pt")
    processor.save(path)
    return path


@pytest.fixture
def random_server(start: Any, folder: Path) -> Any:
    engine = SimpleNamespace(load=lambda: load_engine(folder, EngineConfig(max_num_seqs=4)))
    return start(engine, processor=Processor.from_dir(folder)).wait()


@pytest.fixture
def client(random_server: Any) -> Any:
    with openai.OpenAI(base_url=f"{random_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def check_call(call: Any) -> None:
    """It is one of TOOLS, and its arguments are what its schema says."""
    arguments = json.loads(call.arguments)
    if call.name == "stop":
        assert arguments == {}
    else:
        assert call.name == "forecast"
        assert list(arguments) == ["city", "days"]
        assert len(arguments["city"]) <= 8
        assert 1 <= arguments["days"] <= 14


def test_required_calls_are_made(client: Any) -> None:
    fields: dict[str, Any] = {"model": "default", "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    for seed in SEEDS:
        body = {"enable_thinking": bool(seed % 2), "reasoning_max_tokens": 5}
        answer = client.chat.completions.create(**fields, tool_choice="required", seed=seed, extra_body=body)
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls
        check_call(call.function)
        with client.chat.completions.stream(**fields, tool_choice="required", seed=seed, extra_body=body) as stream:
            [streamed] = stream.get_final_completion().choices[0].message.tool_calls
        assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_the_named_function_is_called(client: Any) -> None:
    choice: Any = {"type": "function", "function": {"name": "forecast"}}
    for seed in SEEDS:
        fields: dict[str, Any] = {"tool_choice": choice, "parallel_tool_calls": False, "reasoning_effort": "none"}
        answer = client.chat.completions.create(model="default", messages=MESSAGES, tools=TOOLS, seed=seed, **fields)
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "forecast"
        check_call(call.function)


def test_parse(client: Any) -> None:
    for seed in SEEDS:
        body = {"reasoning_max_tokens": 4}
        answer = client.chat.completions.parse(
            model="default", messages=MESSAGES, response_format=Sum, seed=seed, extra_body=body
        )
        assert isinstance(answer.choices[0].message.parsed, Sum)
        assert answer.choices[0].finish_reason == "stop"
        response = client.responses.parse(
            model="default", input="hi", text_format=Sum, reasoning={"effort": "none"}, extra_body={"seed": seed}
        )
        assert isinstance(response.output_parsed, Sum)


def test_responses_with_required_calls(client: Any) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    response = client.responses.create(
        model="default",
        input="hi",
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning={"effort": "none"},
    )
    [item] = response.output
    check_call(item)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"guided_regex": "a|bc"}, {"a", "bc"}),
        ({"guided_grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"structured_outputs": {"json": {"enum": [1, "a"]}}}, {"1", '"a"'}),
    ],
)
def test_guided(random_server: Any, fields: dict[str, Any], texts: set[str]) -> None:
    for seed in SEEDS:
        chat = random_server.answer(seed=seed, reasoning_max_tokens=4, **fields)["choices"][0]["message"]
        assert chat["content"] in texts
        body = {"prompt": "hi", "max_tokens": 20, "seed": seed} | fields
        completion = random_server.client.post("/v1/completions", json=body).json()
        assert completion["choices"][0]["text"] in texts


def test_the_shipped_model_which_never_saw_tools(start: Any) -> None:
    folder = resolve_model("tiny")
    engine = SimpleNamespace(load=lambda: load_engine(folder, EngineConfig(max_num_seqs=4)))
    server = start(engine, processor=Processor.from_dir(folder)).wait()
    for thinking in (True, False):
        fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "enable_thinking": thinking}
        message = server.answer("3 + 4", seed=1, **fields)["choices"][0]["message"]
        check_call(SimpleNamespace(**message["tool_calls"][0]["function"]))
        assert (message["reasoning_content"] is not None) == thinking
    assert server.answer("3 + 4", guided_choice=["yes", "no"])["choices"][0]["message"]["content"] in ("yes", "no")
