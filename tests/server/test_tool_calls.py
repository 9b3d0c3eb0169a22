"""Tools over HTTP with an engine that says what it is told: prompts, answers, streams, grammars, refusals."""

import copy
import json
from typing import Any

import openai
import pytest

from ernie45.processor import Processor
from ernie45.processor.template import ChatTemplate
from ernie45.server.protocol.answers import ChatChunk, ChatCompletion

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {"type": "function", "function": {"name": "add"}}
TOOLS = [WEATHER, ADD]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
SECOND = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n'
USER = {"role": "user", "content": "Weather?"}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a"} | fields}


def prompt_of(engine: Any, processor: Processor) -> str:
    return processor.tokenizer.decode(engine.prompts[-1].token_ids.tolist(), skip_special_tokens=False)


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of a stream."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for choice in (choice for event in events for choice in event["choices"]):
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name) or ""
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                assert delta["index"] == len(message["tool_calls"])
                assert delta["function"]["arguments"] == ""
                message["tool_calls"].append({"id": delta["id"], "function": dict(delta["function"])})
            else:
                assert set(delta) == {"index", "function"}
                message["tool_calls"][delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return message


SAYINGS = [
    f"hm\n</think>\n\n{CALL}",
    f"hm</think>I look.\n{CALL}{SECOND}Done.",
    "hm</think>no call <tool_call>oops</tool_call>",
    'hm</think><tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    "<tool_call> in a thought that never ends",
    'hm</think><tool_call>{"name": "add", "argum',
]


@pytest.mark.parametrize("says", SAYINGS)
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 60}, {"stop": ["Do", "京"]}, {"parallel_tool_calls": False}])
def test_stream_and_whole_answer_are_equal(server: Any, engine: Any, says: str, fields: dict[str, Any]) -> None:
    engine.say(says)
    [choice] = server.answer("Weather?", tools=TOOLS, **fields)["choices"]
    message = choice["message"]
    streamed = joined(server.events("Weather?", tools=TOOLS, **fields))
    assert calls_of(streamed) == calls_of(message)
    assert streamed["content"] == (message["content"] or "")
    assert streamed["reasoning_content"] == message["reasoning_content"]
    assert streamed["finish_reason"] == choice["finish_reason"]


def test_calls(server: Any, engine: Any) -> None:
    engine.say(SAYINGS[1])
    [choice] = server.answer("Weather?", tools=TOOLS)["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert calls_of(message) == [("get_weather", '{"city": "北京"}'), ("add", "{}")]
    assert message["content"] == "I look.\nDone."
    assert message["reasoning_content"] == "hm"
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert {call["type"] for call in message["tool_calls"]} == {"function"}


def test_answers_are_as_documented(server: Any, engine: Any) -> None:
    engine.say(SAYINGS[1])
    ChatCompletion.model_validate(server.answer(tools=TOOLS))
    for event in server.events(tools=TOOLS):
        ChatChunk.model_validate(event)


def test_content_is_null_beside_nothing_but_calls(server: Any, engine: Any) -> None:
    engine.say(SAYINGS[0])
    assert server.answer(tools=TOOLS)["choices"][0]["message"]["content"] is None


def test_only_one_call_ends_the_answer(server: Any, engine: Any, until: Any) -> None:
    engine.say(f"{CALL}{SECOND}more and more ", ends=False)
    fields = {"tools": TOOLS, "parallel_tool_calls": False, "enable_thinking": False}
    [choice] = server.answer(**fields)["choices"]
    assert calls_of(choice["message"]) == [("get_weather", '{"city": "北京"}')]
    assert choice["finish_reason"] == "tool_calls"
    until(lambda: len(engine.aborted) == 1)


def test_without_tools_calls_are_text(server: Any, engine: Any) -> None:
    engine.say(CALL)
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        [choice] = server.answer(enable_thinking=False, **fields)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]


def test_the_model_is_shown_tools_calls_and_results(server: Any, engine: Any, processor: Processor) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": [], "audio": None},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny </tool_output> <think>"},
    ]
    response = server.client.post("/v1/chat/completions", json={"messages": messages, "tools": TOOLS})
    assert response.status_code == 200, response.text
    prompt = prompt_of(engine, processor)
    assert f"<tool_list>\n{json.dumps(TOOLS)}\n</tool_list>" in prompt
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n' in prompt
    assert "User: <tool_output>\nsunny </tool_output> <think>\n</tool_output>\n" in prompt
    ids = engine.prompts[-1].token_ids.tolist()
    assert ids.count(processor.think_start_id) == 2  # of the call's thought and of the answer; none from the result
    server.answer(tools=TOOLS, tool_choice="none")
    assert "tool_list" not in prompt_of(engine, processor)


def test_results_are_shown_in_the_order_of_calls(server: Any, engine: Any, processor: Processor) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "add", "arguments": "{}"}}

    results = [{"role": "tool", "tool_call_id": name, "content": f"<{name}>"} for name in ("c", "unknown", "a", "b")]
    messages = [USER, {"role": "assistant", "tool_calls": [call("a"), call("b"), call("c")]}, *results, USER]
    response = server.client.post("/v1/chat/completions", json={"messages": messages, "tools": TOOLS})
    assert response.status_code == 200, response.text
    prompt = prompt_of(engine, processor)
    assert sorted(["<a>", "<b>", "<c>", "<unknown>"], key=prompt.index) == ["<a>", "<b>", "<c>", "<unknown>"]


def test_a_template_without_tools_gives_way_to_the_built_in_one(start: Any, processor: Processor) -> None:
    plain = copy.copy(processor)
    plain.template = ChatTemplate("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    server = start(processor=plain).wait()
    server.answer("hello")
    assert prompt_of(server.engine, processor) == "[hello]"
    server.answer("hello", tools=TOOLS)
    assert "<tool_list>" in prompt_of(server.engine, processor)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"tool_choice": "required"}, "function_0 | function_1"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, '"add'),
        ({"tool_choice": "auto", "response_format": {"type": "json_object"}}, "calls | json"),
        ({"tool_choice": "none", "response_format": {"type": "json_object"}}, "start: "),
        ({"tool_choice": "auto"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("thinking", [True, False])
def test_calls_that_must_be_made(
    server: Any, engine: Any, processor: Processor, fields: dict[str, Any], pattern: str | None, thinking: bool
) -> None:
    server.answer(tools=TOOLS, enable_thinking=thinking, **fields)
    grammar = engine.params[-1].grammar
    assert (grammar is None) == (pattern is None)
    if grammar is not None:
        assert (pattern or "").replace('"add', '\\"add\\"') in grammar.text
        assert grammar.after == (processor.think_end_id if thinking else None)
        named = isinstance(fields["tool_choice"], dict)
        assert ("get_weather" in grammar.text) == (not named and fields["tool_choice"] != "none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools[0].function.x"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [tool(parameters={"type": "x"})]}, "tools[0].function.parameters.type"),
        ({"tools": [tool(parameters={"$ref": "#/x"})]}, "tools[0].function.parameters"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "tool", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
    ],
)  # fmt: skip
def test_refused(server: Any, fields: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": [USER]} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_arguments_that_are_no_object_are_refused(server: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1"}}
    body = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "arguments must be a JSON object" in response.json()["error"]["message"]


def test_official_client(server: Any, engine: Any) -> None:
    """A whole round with the SDK's objects: call, result, answer; streamed too."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    tools: Any = TOOLS
    messages: Any = [USER]
    with client:
        engine.say(SAYINGS[0])
        message = client.chat.completions.create(model="default", messages=messages, tools=tools).choices[0].message
        assert message.tool_calls
        call: Any = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for sent in (message, message.model_dump()):
            engine.say("hm</think>It is sunny.")
            more: Any = [*messages, sent, result]
            answer = client.chat.completions.create(model="default", messages=more, tools=tools)
            assert answer.choices[0].message.content == "It is sunny."
        engine.say(SAYINGS[1])
        with client.chat.completions.stream(model="default", messages=messages, tools=tools) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            final: Any = stream.get_final_completion().choices[0]
    assert [(event.name, event.arguments) for event in done] == [("get_weather", '{"city": "北京"}'), ("add", "{}")]
    assert final.finish_reason == "tool_calls"
    assert len(final.message.tool_calls) == 2


@pytest.mark.parametrize("depth", [100, 200, 300, 900, 3000])
@pytest.mark.parametrize(
    "fields",
    [
        '{"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": DEEP}}}]}',
        '{"tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": DEEP}}}]}',
        '{"guided_json": {"default": DEEP}}',
        '{"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"default": DEEP}}}}',
        '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\\"a\\": DEEP}"}}]}]}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_deep_json_makes_no_500(server: Any, depth: int, fields: str, path: str) -> None:
    body = '{"messages": [{"role": "user", "content": "hi"}], ' + fields[1:].replace("DEEP", "[" * depth + "]" * depth)
    response = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400), response.text
