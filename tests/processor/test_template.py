"""The built-in chat template, string for string, and templates of checkpoints."""

import pytest

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.processor.messages import read_messages
from ernie45.processor.template import ChatTemplate

BOS, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
IMAGE = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
VIDEO = "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>"
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:,"}}
VIDEO_PART = {"type": "video_url", "video_url": {"url": "data:,"}}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, thoughts: str | None = None, **more) -> dict:
    return {"role": "assistant", "content": content, **({"reasoning_content": thoughts} if thoughts else {}), **more}


def render(messages, *, thinking: bool = True, prompt: bool = True, tools=None, template: ChatTemplate | None = None) -> str:
    template = template or ChatTemplate()
    conversation = read_messages(messages)
    return template.render(conversation.messages, tools=tools, add_generation_prompt=prompt, enable_thinking=thinking)


def test_a_question_with_and_without_thinking():
    assert render([user("hi")]) == f"{BOS}User: hi\nAssistant: <think>"
    assert render([user("hi")], thinking=False) == f"{BOS}User: hi\nAssistant: <think>\n\n</think>\n\n"


def test_a_system_message():
    messages = [{"role": "system", "content": "Be brief."}, user("hi")]
    assert render(messages) == f"{BOS}Be brief.\nUser: hi\nAssistant: <think>"
    assert render([{"role": "developer", "content": "Be brief."}, user("hi")]) == render(messages)


def test_parts_stay_in_order_and_pictures_are_numbered_over_the_whole_conversation():
    messages = [
        user([text("What is this? "), IMAGE_PART, VIDEO_PART, text("And this?"), IMAGE_PART]),
        assistant("A cat."),
        user([IMAGE_PART, text("Again.")]),
    ]
    assert render(messages, thinking=False) == (
        f"{BOS}User: What is this? Picture 1:{IMAGE}Video 1:{VIDEO}And this?Picture 2:{IMAGE}"
        f"\nAssistant: A cat.{END}User: Picture 3:{IMAGE}Again.\nAssistant: <think>\n\n</think>\n\n"
    )


def test_older_thoughts_are_dropped():
    expected = f"{BOS}User: 1\nAssistant: one{END}User: 2\nAssistant: <think>"
    assert render([user("1"), assistant("one", "so it is one"), user("2")]) == expected
    assert render([user("1"), assistant("<think>\nso it is one\n</think>\n\none"), user("2")]) == expected


def test_the_thoughts_of_a_finished_last_answer_are_kept():
    """As training needs them; without thoughts the empty ones stand there, as in the prompt without thinking."""
    assert render([user("1"), assistant("one", "\nso it is\n")], prompt=False) == (
        f"{BOS}User: 1\nAssistant: <think>\nso it is\n</think>\n\none{END}"
    )
    assert render([user("1"), assistant("one")], prompt=False) == f"{BOS}User: 1\nAssistant: <think>\n\n</think>\n\none{END}"


@pytest.mark.parametrize(("thinking", "thoughts"), [(True, "so"), (False, None), (True, None)])
def test_a_conversation_with_its_answer_begins_with_its_prompt(thinking, thoughts):
    messages = [user("1"), assistant("one", "x"), user([IMAGE_PART, text("2")])]
    whole = render([*messages, assistant("two", thoughts)], thinking=thinking, prompt=False)
    assert whole.startswith(render(messages, thinking=thinking))


def test_the_same_question_twice_counts_as_two():
    messages = [user("1"), assistant("one", "x"), user("1")]
    assert "x" not in render(messages)


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": "<4>"}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_tools():
    messages = [
        user("3+4?"),
        assistant("", "I should add.", tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "tool", "tool_call_id": "2", "content": "8"},
    ]
    assert render(messages, tools=[TOOL]) == (
        f"{BOS}<tool_list>\n"
        '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]\n</tool_list>\n'
        "User: 3+4?\nAssistant: <think>\nI should add.\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": "<4>"}}\n</tool_call>\n'
        f"{END}User: <tool_output>\n7\n</tool_output>\n<tool_output>\n8\n</tool_output>\n\nAssistant: <think>"
    )


def test_a_checkpoints_template_gets_its_named_tokens_and_may_refuse():
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<B>"})
    assert render([user("x")], template=template) == "<B>x"
    refusing = ChatTemplate("{{ raise_exception('no ' ~ messages[0].role) }}")
    with pytest.raises(RequestError, match="no user"):
        render([user("x")], template=refusing)


def test_a_broken_template_is_the_checkpoints_fault():
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("{{ a }}\n{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.environment }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_is_kept_in_its_sandbox(source):
    try:
        outcome = render([user("x")], template=ChatTemplate(source))
    except RequestError:
        outcome = ""
    assert "uid=" not in outcome
    assert "class" not in outcome


def test_a_second_system_message_is_refused():
    with pytest.raises(RequestError, match="must be the first"):
        render([user("x"), {"role": "system", "content": "y"}])


# Messages


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "at least one message"),
        ("hi", "at least one message"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role \(None\)"),
        ([{"role": "robot", "content": "x"}], r"'robot'"),
        ([{"role": "user"}], r"messages\[0\]\.content must be a text"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be a text or a list"),
        ([{"role": "user", "content": "x", "contents": "y"}], "unknown key 'contents'"),
        ([user([{"type": "audio", "audio": "x"}])], r"messages\[0\]\.content\[0\]\.type \('audio'\)"),
        ([user([{"type": "text"}])], r"content\[0\]\.text must be a text"),
        ([user([{"type": "text", "text": "x", "image": "y"}])], "unknown key 'image'"),
        ([user(["x"])], r"content\[0\]\.type"),
        ([user([{"type": "image_url"}])], r"image_url\.url must be a text"),
        ([user([{"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}])], r"detail \('low'\)"),
        ([user([{"type": "image_url", "image_url": {"link": "x"}}])], "unknown key 'link'"),
        ([user([{"type": "image_url", "image_url": "/etc/passwd"}])], "must be an address"),
        ([user([{"type": "image", "image": "/etc/passwd"}])], r"pathlib\.Path"),
        ([user([{"type": "image"}])], "is missing"),
        ([{"role": "system", "content": [IMAGE_PART]}], "put images and videos into user messages"),
        ([{"role": "assistant", "content": "x", "reasoning_content": 3}], "reasoning_content must be a text"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"tool_calls\[0\] must be"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "must be a JSON object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "must be a JSON object"),
        ([{"role": "assistant", "tool_calls": "f"}], "tool_calls must be a list"),
    ],
)
def test_bad_messages_name_the_place(messages, error):
    with pytest.raises(RequestError, match=error) as caught:
        read_messages(messages)
    assert "\n" not in str(caught.value)
