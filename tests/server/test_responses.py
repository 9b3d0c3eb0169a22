"""OpenAI's responses with an engine that says what it is told: items, events, the store, the SDK, refusals."""

import asyncio
import json
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from pydantic import BaseModel, TypeAdapter

from ernie45.processor import Processor
from ernie45.server.protocol.parts import UserMessage
from ernie45.server.responses.store import ResponseStore

THOUGHT = "hm\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def create(server: Any, **fields: Any) -> dict[str, Any]:
    response = server.client.post("/v1/responses", json={"input": "hi"} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def events(server: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream; each one's name must be its type, and the numbers must count."""
    response = server.client.post("/v1/responses", json={"input": "hi", "stream": True} | fields)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def prompt_of(engine: Any, processor: Processor) -> str:
    return processor.tokenizer.decode(engine.prompts[-1].token_ids.tolist(), skip_special_tokens=False)


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_ids(item) for key, item in value.items() if key not in ("id", "call_id", "created_at", "completed_at")
        }
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_items_and_usage(server: Any, engine: Any) -> None:
    engine.say(f"{THOUGHT}I look.\n{CALL}")
    response = create(server, tools=[WEATHER], metadata={"a": "b"}, instructions="Be brief.", max_output_tokens=200)
    reasoning, message, call = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert reasoning["summary"] == []
    assert message["content"] == [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "北京"})
    assert [item["id"].partition("_")[0] for item in response["output"]] == ["rs", "msg", "fc"]
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert (response["status"], response["metadata"], response["instructions"]) == ("completed", {"a": "b"}, "Be brief.")
    assert response["max_output_tokens"] == 200
    usage = response["usage"]
    assert usage["input_tokens"] == len(engine.prompts[-1])
    assert usage["output_tokens_details"] == {"reasoning_tokens": len("hm\n") + 1}
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    TypeAdapter(Response).validate_python(response, strict=False)  # all that the SDK's type wants is there


def test_order_of_events(server: Any, engine: Any) -> None:
    engine.at_once = True
    engine.say(f"{THOUGHT}I look.\n{CALL}")
    assert [event["type"].removeprefix("response.") for event in events(server, tools=[WEATHER])] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_a_thought_as_summary(server: Any, engine: Any) -> None:
    engine.at_once = True
    engine.say(f"{THOUGHT}x")
    sent = events(server, reasoning={"summary": "auto"})
    assert [event["type"] for event in sent[2:8]] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]
    assert sent[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]


@pytest.mark.parametrize(
    "says", [THOUGHT + "It is 7.", THOUGHT + CALL + CALL, f"{THOUGHT}a{CALL}b", "never ends", "x</think>", ""]
)
@pytest.mark.parametrize("fields", [{}, {"max_output_tokens": 60}, {"max_output_tokens": 3}, {"reasoning": {"effort": "none"}}])
def test_stream_and_whole_response_are_equal(server: Any, engine: Any, says: str, fields: dict[str, Any]) -> None:
    engine.say(says)
    whole = create(server, tools=[WEATHER], **fields)
    sent = events(server, tools=[WEATHER], **fields)
    assert without_ids(sent[-1]["response"]) == without_ids(whole)
    assert sent[-1]["type"] == f"response.{whole['status']}"
    done = [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    assert done == sent[-1]["response"]["output"]
    if fields == {"max_output_tokens": 3} and len(says) > 9:
        assert whole["status"] == "incomplete"
        assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
        assert whole["output"][-1]["status"] == "incomplete"


def test_items_become_the_conversation(server: Any, engine: Any, processor: Processor, data_url: str) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_image", "image_url": data_url}, {"type": "input_text", "text": "Look"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I call.", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
    ]
    create(server, input=items, instructions="Be brief.", tools=[WEATHER])
    prompt = prompt_of(engine, processor)
    assert "<|begin_of_sentence|>Be brief.\nBe kind.\n<tool_list>" in prompt
    assert prompt.count("<|IMAGE_PLACEHOLDER|>") == 6
    assert "Look\nAssistant: <think>\nso\n</think>\n\nI call.<tool_call>\n" in prompt
    assert "User: <tool_output>\nsunny\n</tool_output>" in prompt


def test_settings_reach_the_engine(server: Any, engine: Any, processor: Processor) -> None:
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    create(server, temperature=0.3, top_p=0.9, seed=7, max_output_tokens=11, reasoning={"effort": "none"}, text=text)
    params = engine.params[-1]
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.3, 0.9, 7, 11)
    assert params.grammar is not None
    assert params.grammar.after is None
    assert prompt_of(engine, processor).endswith("</think>\n\n")
    create(server, tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"})
    assert "get_weather" in engine.params[-1].grammar.text


def test_store(server: Any, engine: Any, processor: Processor) -> None:
    engine.say(f"{THOUGHT}seven")
    first = create(server, input="remember", store=True, instructions="A")
    url = f"/v1/responses/{first['id']}"
    assert server.client.get(url).json() == first
    engine.say(f"{THOUGHT}again")
    [*_, last] = events(server, input="what?", previous_response_id=first["id"], store=True, instructions="B")
    prompt = prompt_of(engine, processor)
    assert "B\nUser: remember\nAssistant: seven<|end_of_sentence|>User: what?" in prompt
    assert server.client.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]
    create(server, input="and?", previous_response_id=last["response"]["id"])
    assert "seven<|end_of_sentence|>User: what?\nAssistant: again<|end_of_sentence|>User: and?" in prompt_of(engine, processor)
    assert server.client.delete(url).json() == {"id": first["id"], "object": "response", "deleted": True}
    assert server.client.get(url).status_code == server.client.delete(url).status_code == 404
    assert server.client.get(f"/v1/responses/{create(server)['id']}").status_code == 404  # nobody asked to keep it


def test_store_is_bounded() -> None:
    store = ResponseStore(max_responses=3, max_bytes=2000)
    message = UserMessage(role="user", content="x" * 100, name=None)
    for index in range(4):
        store.put({"id": str(index)}, [message])
        store.get("0" if index < 3 else "3")
    assert [store.get(str(index)) is not None for index in range(4)] == [True, False, True, True]
    store.put({"id": "huge", "text": "x" * 3000}, [])
    assert store.get("huge") is None
    assert len(store) == 3
    store.put({"id": "large", "text": "x" * 1700}, [])
    assert len(store) == 2
    assert store.delete("large")
    assert not store.delete("large")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    ({"input": [user({"type": "input_image", "image_url": "/etc/passwd"})]}, "input[0].content[0].image_url.url"),
    ({"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "input"),
    ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:,x"}]}]}, "input[0].content[0]"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]}, "input[0].arguments"),
    ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"truncation": "auto"}, "truncation"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [WEATHER | {"parameters": {"type": "object", "$ref": "#/x"}}]}, "tools[0].parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}}, "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"metadata": {"a": 1}}, "metadata.a"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_refused(server: Any, fields: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/responses", json={"input": "hi"} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "function", "user", "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "content", "name"]), inner),
    max_leaves=6,
)
ITEMS: list[Any] = [
    user({"type": "input_text", "text": "a"}),
    {"role": "assistant", "content": "b"},
    {"role": "system", "content": "c"},
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "o"},
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(["tools", "tool_choice", "text", "reasoning", "instructions", "user"]), JSON, max_size=2),
)
def test_no_input_makes_a_500(server: Any, items: list[Any], fields: dict[str, Any]) -> None:
    response = server.client.post("/v1/responses", json={"input": items} | fields)
    assert response.status_code in (200, 400), response.text


def test_bad_pictures_are_named_as_they_were_sent(server: Any) -> None:
    items = [{"role": "system", "content": "s"}, user({"type": "input_image", "image_url": "data:image/png;base64,eA=="})]
    response = server.client.post("/v1/responses", json={"input": items, "instructions": "i"})
    assert response.status_code == 415
    assert response.json()["error"]["param"] == "input[1].content[0].image_url"
    assert response.json()["error"]["message"].startswith("input[1].content[0].image_url (1 bytes)")


def test_other_model_is_404_and_queries_are_refused(server: Any) -> None:
    assert server.client.post("/v1/responses", json={"input": "hi", "model": "gpt"}).status_code == 404
    assert server.client.get("/v1/responses/x?stream=true").status_code == 400


def test_a_failure_under_way_is_an_event(start: Any, new_engine: Any) -> None:
    new_engine.fail_at = 3
    [*_, last] = events(start(engine=new_engine).wait())
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"


class Answer(BaseModel):
    x: int
    why: str


@pytest.fixture
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_sdk(client: Any, engine: Any) -> None:
    engine.say(f"{THOUGHT}It is 7.")
    response = client.responses.create(model="default", input="3 + 4?", store=True)
    assert response.output_text == "It is 7."
    assert client.responses.retrieve(response.id).output_text == "It is 7."
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    kinds = [event.type for event in client.responses.create(model="default", input="3 + 4?", stream=True)]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_sdk_sends_the_output_back(client: Any, engine: Any, processor: Processor) -> None:
    engine.say(THOUGHT + CALL)
    items: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = client.responses.create(model="default", input=items, tools=[WEATHER])
    items += first.output
    items.append({"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "sunny"})
    engine.say(f"{THOUGHT}Sunny.")
    assert client.responses.create(model="default", input=items, tools=[WEATHER]).output_text == "Sunny."
    assert "<think>\nhm\n</think>\n\n<tool_call>" in prompt_of(engine, processor)


def test_sdk_streaming_helper(client: Any, engine: Any) -> None:
    engine.say(f"{THOUGHT}I look.\n{CALL}")
    with client.responses.stream(model="default", input="Weather?", tools=[WEATHER]) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "I look."
    assert final.output[-1].arguments == '{"city": "北京"}'


def test_sdk_parses(client: Any, engine: Any) -> None:
    engine.say(THOUGHT + '{"x": 7, "why": "sum"}')
    parsed = client.responses.parse(model="default", input="3 + 4?", text_format=Answer).output_parsed
    assert parsed == Answer(x=7, why="sum")
    assert engine.params[-1].grammar is not None
    with client.responses.stream(model="default", input="3 + 4?", text_format=Answer) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == parsed
    message: Any = [{"role": "user", "content": "3 + 4?"}]
    completion = client.chat.completions.parse(model="default", messages=message, response_format=Answer)
    assert completion.choices[0].message.parsed == parsed


def test_async_sdk(server: Any, engine: Any) -> None:
    engine.say(f"{THOUGHT}It is 7.")

    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.responses.create(model="default", input="3 + 4?")
            async with client.responses.stream(model="default", input="3 + 4?") as stream:
                async for _ in stream:
                    pass
                return whole.output_text, (await stream.get_final_response()).output_text

    assert asyncio.run(ask()) == ("It is 7.", "It is 7.")


def test_openapi(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    post = document["paths"]["/v1/responses"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert all("description" in field for field in schema["properties"].values())
    assert {"200", "400", "404", "429", "503"} <= set(post["responses"])
    assert set(document["paths"]["/v1/responses/{response_id}"]) == {"get", "delete"}
