"""Tool calls out of text: whole and in pieces, well-formed and not."""

import json
import random

import pytest

from ernie45.config.errors import ConfigError
from ernie45.server.tools import CallArguments, CallStart, Content, ToolCallStream, tool_format
from ernie45.server.tools.json_scan import JsonScanner
from ernie45.server.tools.stream import Event, joined, read_calls

ERNIE = tool_format("ernie45")
NAMES = {"get_weather", "add", "f"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}\n</tool_call>\n'
ADD = [CallStart(0, "add"), CallArguments(0, '{"a": 1, "b": [2, {"c": "}"}]}')]

CASES: dict[str, tuple[str, list[Event]]] = {
    "text alone": ("  a < b, a <b>, <tool_cal \n", [Content("  a < b, a <b>, <tool_cal \n")]),
    "one call": ("\n\n" + CALL, ADD),
    "text before and after": (f"I look.\n{CALL}\nDone.\n", [Content("I look."), *ADD, Content("\n\nDone.\n")]),
    "text only after": (f"{CALL}\nDone.", [*ADD, Content("Done.")]),
    "two calls": (
        CALL + '<tool_call>{"name":"f","arguments":{}}</tool_call>',
        [*ADD, CallStart(1, "f"), CallArguments(1, "{}")],
    ),
    "arguments first": (
        '<tool_call>{"arguments": {"x": "</tool_call>"}, "name": "f"}</tool_call>',
        [CallStart(0, "f"), CallArguments(0, '{"x": "</tool_call>"}')],
    ),
    "parameters, other keys": (
        '<tool_call>{"id": [1], "n": {"name": "add"}, "name": "f", "k": -1.5e3, "parameters": {"é": "\\u00e9\\""}}</tool_call>',
        [CallStart(0, "f"), CallArguments(0, '{"é": "\\u00e9\\""}')],
    ),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', [CallStart(0, "f"), CallArguments(0, "{}")]),
    "null arguments": (
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        [CallStart(0, "f"), CallArguments(0, "{}")],
    ),
    "arguments as a text": (
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        [CallStart(0, "f"), CallArguments(0, '{"x": 1}')],
    ),
    "no outer braces": (
        '<tool_call>\n"name": "f", "arguments": {"x": 1}\n</tool_call>',
        [CallStart(0, "f"), CallArguments(0, '{"x": 1}')],
    ),
    "no closing brace": (
        '<tool_call>{"name": "f", "arguments": {"x": 1}\n</tool_call>!',
        [CallStart(0, "f"), CallArguments(0, '{"x": 1}'), Content("!")],
    ),
    "no end tag": ('<tool_call>{"name": "f", "arguments": {}}', [CallStart(0, "f"), CallArguments(0, "{}")]),
    "no end tag, another call": (
        '<tool_call>{"name": "f"} <tool_call>{"name": "f"}',
        [CallStart(0, "f"), CallArguments(0, "{}"), CallStart(1, "f"), CallArguments(1, "{}")],
    ),
    "cut off in the arguments": (
        '<tool_call>{"name": "f", "arguments": {"x": "ab',
        [CallStart(0, "f"), CallArguments(0, '{"x": "ab')],
    ),
    "breaks in the arguments": (
        '<tool_call>{"name": "f", "arguments": {"x": oops}, </tool\n</tool_call>ok',
        [CallStart(0, "f"), CallArguments(0, '{"x": oops}, </tool'), Content("ok")],
    ),
    "breaks behind the arguments": (
        '<tool_call>{"name": "f", "arguments": {"x": 1}}}</tool_call>',
        [CallStart(0, "f"), CallArguments(0, '{"x": 1}'), Content("}</tool_call>")],
    ),
}
NO_CALLS = [
    "<tool_call>",
    " x <tool_call>\n",
    "<tool_call>{}</tool_call>",
    "<tool_call>[]</tool_call>",
    "<tool_call>hello</tool_call>",
    '<tool_call>{"name": "f", "arguments": {oops}}</tool_call> and',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>',
    '<tool_call>{"name": "not_offered", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "argum',
    '<tool_call>{"name": "f", "arguments": {',
    '<tool_call>{"name": "ge<tool_call>t_weather"</tool_call>',
    "<tool_call><tool_call></tool_call>",
    '<tool_call>{"name" "f"}</tool_call>',
]


@pytest.mark.parametrize("case", CASES)
def test_calls(case: str) -> None:
    text, events = CASES[case]
    assert read_calls(text, ERNIE, NAMES) == events


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_calls(text, ERNIE, NAMES) == [Content(text)]


def test_a_call_inside_what_is_no_call_is_one() -> None:
    assert read_calls("<tool_call>{\n" + CALL, ERNIE, NAMES) == [Content("<tool_call>{"), *ADD]


def in_pieces(text: str, cuts: random.Random) -> list[Event]:
    stream, events = ToolCallStream(ERNIE, NAMES), []
    while text:
        length = cuts.choice([1, 1, 2, 3, 7, 30])
        events += stream.push(text[:length])
        text = text[length:]
    assert all(event.text for event in events if not isinstance(event, CallStart))
    return joined([*events, *stream.flush()])


def test_however_it_is_cut() -> None:
    """Also over random mixtures of what calls are made of."""
    cuts = random.Random(4)
    parts = [
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "{",
        "}",
        '"',
        ":",
        ", ",
        "<",
        "x",
        "[",
        "1",
    ]
    parts += ['{"name": "f"', '"arguments": {', '"name"', CALL, '\\"', "null", "字"]
    texts = [text for text, _ in CASES.values()] + NO_CALLS
    texts += ["".join(cuts.choices(parts, k=cuts.randint(1, 12))) for _ in range(2000)]
    for text in texts:
        assert in_pieces(text, cuts) == read_calls(text, ERNIE, NAMES), text


def test_nothing_is_lost() -> None:
    """All that is neither white space nor the frame of a call comes out, in order."""
    rng = random.Random(5)
    parts = ["<tool_call>", "\n", "{", "}", '"', ":", "<", "x", "1", '{"name": "f"', "</tool"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        events = read_calls(text, ERNIE, NAMES)
        if not any(isinstance(event, CallStart) for event in events):
            assert "".join(event.text for event in events if isinstance(event, Content)) == text


def test_deeply_nested_text_is_read_without_recursion() -> None:
    text = '<tool_call>{"' * 3000 + '{"a":' * 3000
    assert "".join(event.text for event in read_calls(text, ERNIE, NAMES) if isinstance(event, Content)) == text
    deep = '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000
    assert len(read_calls(deep, ERNIE, NAMES)) == 2


def test_arguments_come_as_they_are_said() -> None:
    stream = ToolCallStream(ERNIE, NAMES)
    assert stream.push('<tool_call>{"name": "f", "arg') == []
    assert stream.push('uments": {"') == [CallStart(0, "f"), CallArguments(0, '{"')]
    assert stream.push('x": 1') == [CallArguments(0, 'x": 1')]
    assert stream.push("}}") == [CallArguments(0, "}")]


VALID = ['{"a": [1, -0.5e+7, true, false, null, "x\\n\\u0041", {}, []]}', "{}", '{"a":{"b":[[]]}}', '{"":0}']


def accepts(text: str) -> bool:
    scanner = JsonScanner()
    return all(scanner.push(character) for character in text) and scanner.complete


def test_scanner_agrees_with_json() -> None:
    rng = random.Random(6)
    texts = list(VALID)
    for _ in range(5000):
        text = list(rng.choice(VALID))
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(text))
            text[place : place + rng.randint(0, 1)] = rng.choice('{}[]",:0-.eE+ \\\nutx1')
        texts.append("".join(text).strip())
    assert 300 < sum(map(accepts, texts)) < 4000
    for text in texts:
        try:
            expected = isinstance(json.loads(text), dict)
        except ValueError:
            expected = False
        assert accepts(text) == expected, text


def test_unknown_parser() -> None:
    with pytest.raises(ConfigError, match="did you mean hermes"):
        tool_format("hermis")
