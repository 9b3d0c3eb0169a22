"""From the forms that requests ask for to grammars: what they let through, and what is refused."""

import copy
import json
from typing import Any

import pytest
from llguidance import LLMatcher

from ernie45.config.sampling import Grammar
from ernie45.processor import Processor
from ernie45.processor.added_tokens import AddedToken
from ernie45.processor.grammar import GrammarCompiler, check_grammar
from ernie45.processor.tokenizer import Tokenizer
from ernie45.server.errors import ApiError
from ernie45.server.protocol.structured import StructuredFields
from ernie45.server.protocol.tools import FunctionDefinition
from ernie45.server.structured import CallRule, answer_form, check_functions, check_grammars, grammar, unchecked_grammars
from ernie45.server.tools import CallArguments, CallStart, tool_format
from ernie45.server.tools.stream import read_calls

POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "boolean"}}, "required": ["x", "y"]}
CLOSED = POINT | {"additionalProperties": False}
FORM = tool_format("ernie45")


def function(**values: Any) -> FunctionDefinition:
    return FunctionDefinition.model_validate(values)


FUNCTIONS = [
    function(name="move", parameters=CLOSED, strict=True),
    function(name="stop"),
]


def fields(**values: Any) -> StructuredFields:
    return StructuredFields.model_validate(values)


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


def rule(parallel: bool = True, control_tokens: frozenset[str] = frozenset()) -> CallRule:
    return CallRule(functions=FUNCTIONS, form=FORM, control_tokens=control_tokens, parallel=parallel)


def matches(wanted: Grammar | None, text: str, processor: Processor) -> bool:
    assert wanted is not None
    matcher: LLMatcher = GrammarCompiler(processor.tokenizer, len(processor.tokenizer)).matcher(wanted)
    ids = processor.tokenizer.encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


TAG = {"structures": [{"begin": "<f>", "schema": CLOSED, "end": "</f>"}], "triggers": ["<f>"]}
FORMS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"response_format": {"type": "json_object"}}, ['{"a": [1, 2]}', "{}"], ["[]", "hello", '{\n"a": 1}']),
    (json_schema(CLOSED, strict=True), ['{"x": 5, "y": true}'], ['{"x": 5}', '{"x": 5.5, "y": true}', '{"x":5,"y":true}']),
    ({"guided_json": CLOSED}, ['{"x": 5, "y": true}'], ["{}"]),
    ({"guided_json": json.dumps(CLOSED)}, ['{"x": -5, "y": false}'], ["{}"]),
    ({"guided_json_object": True}, ["{}"], ["[]"]),
    ({"guided_regex": "[a-c]+x"}, ["abcx"], ["abc", "dx"]),
    ({"guided_choice": ["yes", 'n"o\n', "ä"]}, ["yes", 'n"o\n', "ä"], ["ye", "yesyes"]),
    ({"guided_grammar": 'start: "a" b+\nb: "b"'}, ["abb"], ["a", "b"]),
    ({"guided_grammar": 'root ::= "a" b+\nb ::= "b"'}, ["abb"], ["a", "b"]),
    ({"structured_outputs": {"json": CLOSED}}, ['{"x": 5, "y": true}'], ["{}"]),
    ({"structured_outputs": {"regex": "a|b"}}, ["a"], ["c"]),
    ({"structured_outputs": {"choice": ["a"]}}, ["a"], ["b"]),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, ["a"], ["b"]),
    ({"structured_outputs": {"json_object": True}}, ["{}"], ["b"]),
    ({"structural_tag": TAG}, ["free", 'a <f>{"x": 5, "y": true}</f> b'], ["a <f>oops</f>"]),
    ({"response_format": {"type": "structural_tag", **TAG}}, ["a"], ["<f>{}</f>"]),
]


@pytest.mark.parametrize(("request_fields", "good", "bad"), FORMS)
def test_forms(request_fields: dict[str, Any], good: list[str], bad: list[str], processor: Processor) -> None:
    wanted = grammar(answer_form(fields(**request_fields)), None, None)
    for text in good:
        assert matches(wanted, text, processor), text
    for text in bad:
        assert not matches(wanted, text, processor), text


def test_free_text_has_no_grammar() -> None:
    assert grammar(answer_form(fields()), None, None) is None
    assert grammar(answer_form(fields(response_format={"type": "text"}, guided_json_object=False)), None, 5) is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (json_schema({"type": "objekt"}), "response_format.json_schema.schema", "objekt"),
    (json_schema({"$ref": "#/$defs/none"}), "response_format.json_schema.schema", "does not exist"),
    (json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "response_format.json_schema.schema", "nsatisf"),
    (json_schema({"not": {}, "type": "string"}, strict=True), "response_format.json_schema.schema", "Unimplemented"),
    ({"guided_json": {"not": {}}}, "guided_json", "Unimplemented"),
    ({"guided_json": "{oops"}, "guided_json", "not valid JSON"),
    ({"guided_json": "[1]"}, "guided_json", "must be a JSON schema"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_grammar": 'start: "a" || )'}, "guided_grammar", "cannot be followed"),
    ({"guided_grammar": "root ::= ((("}, "guided_grammar", ""),
    ({"structured_outputs": {}}, "structured_outputs", "must have one of"),
    ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json", "cannot be followed"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex", "both say"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format", "both say"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.regex", "both say"),
    ({"structural_tag": TAG | {"triggers": ["<g>"]}}, "structural_tag.structures[0].begin", "triggers"),
]


@pytest.mark.parametrize(("request_fields", "param", "reason"), REFUSED)
def test_refused(request_fields: dict[str, Any], param: str, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        answer_form(fields(**request_fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert reason in caught.value.message


def test_too_large() -> None:
    with pytest.raises(ApiError, match="make it smaller"):
        answer_form(fields(guided_json={"type": "string", "description": "x" * 2**18}))


def test_tools_together_are_as_large_as_one_form() -> None:
    functions = [function(name=f"f{index}", parameters={"description": "x" * 2**15}) for index in range(8)]
    with pytest.raises(ApiError, match="tools \\(parameters of") as caught:
        check_functions(functions, ["f"] * 8)
    assert caught.value.param == "tools"
    assert unchecked_grammars(fields(), functions) == []  # nothing is compiled for it
    check_functions(functions[:7], ["f"] * 7)


def test_what_is_checked_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is refused; and all that takes long is known before."""
    request = fields(structural_tag=TAG | {"structures": [TAG["structures"][0] | {"schema": {"const": "once"}}]})
    functions = [function(name="f", parameters={"properties": {"once": {"type": "x"}}}), function(name="g")]
    wanted = unchecked_grammars(request, functions)
    check_grammars(wanted)
    assert len(wanted) >= 3
    monkeypatch.setattr("ernie45.processor.grammar._compile", None)
    assert unchecked_grammars(request, functions) == []
    assert answer_form(request) is not None
    for _ in range(2):
        with pytest.raises(ApiError, match="cannot be followed"):
            check_functions(functions, ["f", "g"])


def test_lenient_only_where_it_is_not_strict() -> None:
    assert answer_form(fields(**json_schema({"type": "string", "not": {}}))) is not None
    check_functions([function(name="f", parameters={"type": "object", "not": {}})], ["tools[0].function"])
    with pytest.raises(ApiError) as caught:
        check_functions([function(name="f", parameters={"not": {}}, strict=True)], ["tools[0].function"])
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("functions", "param"),
    [
        ([function(name="f"), function(name="f")], "f1.name"),
        ([function(name="f", parameters={"type": "string"})], "f0.parameters.type"),
        ([function(name="f", parameters={"properties": {"a": {"type": "x"}}})], "f0.parameters"),
    ],
)
def test_bad_functions(functions: list[FunctionDefinition], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_functions(functions, [f"f{index}" for index in range(len(functions))])
    assert caught.value.param == param


ONE = '<tool_call>\n{"name": "move", "arguments": {"x": 1, "y": true}}\n</tool_call>'
NONE = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("parallel", [True, False])
def test_calls(parallel: bool, processor: Processor) -> None:
    wanted = grammar(None, rule(parallel), None)
    assert matches(wanted, ONE, processor)
    assert matches(wanted, NONE, processor)
    assert matches(wanted, f"{NONE}\n{ONE}", processor) == parallel
    assert not matches(wanted, ONE.replace("1", '"1"'), processor)
    assert not matches(wanted, ONE.replace("move", "run"), processor)
    assert not matches(wanted, "hello", processor)
    assert read_calls(ONE, FORM, ["move"]) == [CallStart(0, "move"), CallArguments(0, '{"x": 1, "y": true}')]


def test_calls_or_a_form(processor: Processor) -> None:
    wanted = grammar(answer_form(fields(guided_json=CLOSED)), rule(), None)
    assert matches(wanted, ONE, processor)
    assert matches(wanted, '{"x": 1, "y": true}', processor)
    assert not matches(wanted, "hello", processor)
    with pytest.raises(ApiError, match="beside tools"):
        grammar(answer_form(fields(guided_regex="a")), rule(), None)


def test_behind_a_thought_comes_an_empty_line(processor: Processor) -> None:
    wanted = grammar(answer_form(fields(guided_json=CLOSED)), None, 11)
    assert wanted is not None
    assert wanted.after == 11
    assert matches(wanted, '\n\n{"x": 1, "y": true}', processor)
    wanted = grammar(None, rule(), 11)
    assert matches(wanted, "\n\n" + ONE, processor)


def test_tags_that_are_tokens_are_written_as_tokens() -> None:
    wanted = grammar(None, rule(control_tokens=frozenset([FORM.start, FORM.end])), None)
    assert wanted is not None
    assert 'call: <tool_call> "' in wanted.text
    check_grammar(wanted, [FORM.start, FORM.end])


def test_a_tokenizer_with_tags_as_tokens(processor: Processor) -> None:
    """As ERNIE's own: the call is written with its tokens, and its letters are not taken for them."""
    data = copy.deepcopy(processor.tokenizer.data)
    for name in (FORM.start, FORM.end):
        token_id = len(data["model"]["vocab"])
        data["model"]["vocab"][name] = token_id
        data["added_tokens"].append(AddedToken(token_id, name, special=False).to_json())
    tokenizer = Tokenizer(data)
    start, end = tokenizer.id_of(FORM.start), tokenizer.id_of(FORM.end)
    assert start is not None
    assert end is not None
    wanted = grammar(None, rule(control_tokens=frozenset(tokenizer.control_ids)), None)
    assert wanted is not None
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    body = tokenizer.encode('\n{"name": "stop", "arguments": {}}\n')
    matcher = compiler.matcher(wanted)
    assert matcher.try_consume_tokens([start, *body, end]) == len(body) + 2
    assert matcher.is_accepting()
    assert compiler.matcher(wanted).try_consume_tokens(tokenizer.encode(FORM.start)) == 0
    assert tokenizer.decode([start, *body, end]) == f'{FORM.start}\n{{"name": "stop", "arguments": {{}}}}\n{FORM.end}'
