"""From what a request says about the form of its answer, and about the calls it must make, to a `Grammar`.

Knows nothing about tokens but the id behind which a grammar begins, or about how a grammar is enforced.

Grammars are written in llguidance's Lark dialect. JSON is written as models were shown it: on one line, with one space behind
commas and colons; white space at will lets a weak model write nothing else.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from llguidance import StructTag
from llguidance.gbnf_to_lark import any_to_lark

from ernie45.config.errors import RequestError
from ernie45.config.sampling import Grammar
from ernie45.processor.grammar import check_grammar, is_checked
from ernie45.server.errors import ApiError
from ernie45.server.protocol.structured import (
    MAX_GRAMMAR_CHARACTERS,
    JsonSchemaFormat,
    StructuralTag,
    StructuredFields,
    TextFormat,
)
from ernie45.server.protocol.tools import FunctionDefinition
from ernie45.server.tools import ToolFormat

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT = {"type": "object"}


class Form(NamedTuple):
    """What the answer must be. kind: json is a JSON schema, lark a whole grammar. field: where the request says so.

    parts: forms in it that are checked before it, so that an error names theirs.
    """

    kind: Literal["json", "regex", "lark"]
    text: str
    field: str
    parts: tuple["Form", ...] = ()


def answer_form(request: StructuredFields) -> Form | None:
    """The form that is asked for, checked. ApiError (400) for several, or for one that no text can have."""
    forms = _forms(request)
    if len(forms) > 1:
        names = " and ".join(form.field for form in forms)
        raise ApiError(
            400, f"{names} both say what the answer is; send one of them", param=forms[0].field, code="invalid_value"
        )
    if not forms:
        return None
    [form] = forms
    for each in (*form.parts, form):
        _check(each)
    return form


def unchecked_grammars(request: StructuredFields, functions: Sequence[FunctionDefinition] = ()) -> list[Grammar]:
    """What has to be compiled to find out whether a request can be followed, and was not yet.

    `answer_form` and `check_functions` take long for these only. Those of a request that is refused for another reason are
    left out.
    """
    try:
        forms = _forms(request)
        _check_total(functions)
    except ApiError:
        return []
    forms = [each for form in forms for each in (*form.parts, form)]
    forms += [Form("json", _parameters(function), "") for function in functions]
    grammars = [_grammar_of(form) for form in forms if len(form.text) <= MAX_GRAMMAR_CHARACTERS]
    return [grammar for grammar in grammars if not is_checked(grammar)]


def check_grammars(grammars: Sequence[Grammar]) -> None:
    """Do the work for `unchecked_grammars`; what it finds is remembered and said later."""
    for each in grammars:
        with suppress(RequestError):
            check_grammar(each)


def check_functions(functions: Sequence[FunctionDefinition], fields: Sequence[str]) -> None:
    """ApiError (400) for a name that stands twice, or parameters that no object can match. fields: names for messages."""
    _check_total(functions)
    seen: set[str] = set()
    for function, field in zip(functions, fields, strict=True):
        if function.name in seen:
            rule = f"{field}.name ({function.name!r}) stands twice; rename one of the functions"
            raise ApiError(400, rule, param=f"{field}.name", code="invalid_value")
        seen.add(function.name)
        kind = (function.parameters or {}).get("type", "object")
        if kind != "object":
            rule = f"{field}.parameters.type ({str(kind)[:80]!r}) must be 'object': a function has named arguments; change it"
            raise ApiError(400, rule, param=f"{field}.parameters.type", code="invalid_value")
        _check(Form("json", _parameters(function), f"{field}.parameters"))


class CallRule(NamedTuple):
    """Calls that an answer has.

    functions  it may call. form: how the model writes calls. control_tokens: of the model's tokenizer: tags among them are
    written as tokens. parallel: several calls, not just one.
    """

    functions: Sequence[FunctionDefinition]
    form: ToolFormat
    control_tokens: frozenset[str]
    parallel: bool


def grammar(form: Form | None, calls: CallRule | None, after: int | None) -> Grammar | None:
    """What the answer must match: calls, or the form, or one of both. None: it is free.

    after: id of the token that ends the thought, if there is one: the answer begins behind it, after an empty line.
    """
    if form is None and calls is None:
        return None
    if calls is None and form is not None and form.kind != "json":
        return Grammar(kind="lark" if form.kind == "lark" else "regex", text=form.text, after=after)
    if form is not None and form.kind != "json":
        rule = f"{form.field} is not possible beside tools that may be called; set tool_choice to none or use a JSON schema"
        raise ApiError(400, rule, param=form.field, code="invalid_value")
    alternatives = [*(["calls"] if calls else []), *(["json"] if form else [])]
    lead = '"\\n\\n" ' if after is not None else ""
    lines = [f"start: {lead}({' | '.join(alternatives)})"]
    lines += _call_rules(calls) if calls else []
    lines += [f"json: %json {form.text}"] if form else []
    return Grammar(kind="lark", text="\n".join(lines) + "\n", after=after)


def _call_rules(calls: CallRule) -> list[str]:
    form = calls.form
    start, end = (tag if tag in calls.control_tokens else _quoted(tag) for tag in (form.start, form.end))
    names = " | ".join(f"function_{index}" for index in range(len(calls.functions)))
    more = f" ({_quoted(form.between)} call)*" if calls.parallel else ""
    lines = [f"calls: call{more}", f"call: {start} {_quoted(form.before)} ({names}) {_quoted(form.after)} {end}"]
    for index, function in enumerate(calls.functions):
        head = f'{{"name": {json.dumps(function.name)}, "arguments": '
        lines.append(f'function_{index}: {_quoted(head)} %json {_parameters(function)} "}}"')
    return lines


def _forms(request: StructuredFields) -> list[Form]:
    """All that the request asks for."""
    forms: list[Form] = []
    fmt = request.response_format
    if isinstance(fmt, JsonSchemaFormat):
        schema, strict = fmt.json_schema.schema_, bool(fmt.json_schema.strict)
        forms.append(Form("json", _styled(schema, lenient=not strict), "response_format.json_schema.schema"))
    elif isinstance(fmt, StructuralTag):
        forms.append(_structural(fmt, "response_format"))
    elif fmt is not None and not isinstance(fmt, TextFormat):
        forms.append(Form("json", _styled(_ANY_OBJECT), "response_format"))
    outputs = request.structured_outputs
    for source, prefix, joint in ((request, "guided_", ""), (outputs, "", "structured_outputs.")):
        if source is not None:
            given = {
                name: getattr(source, f"{prefix}{name}", None)
                for name in ("json_", "regex", "choice", "grammar", "json_object")
            }
            given["json_"] = given["json_"] if source is outputs else request.guided_json
            for name, value in given.items():
                if value is not None and value is not False:
                    forms.append(_guided(name.rstrip("_"), value, f"{joint}{prefix}{name.rstrip('_')}"))
            if source.structural_tag is not None:
                forms.append(_structural(source.structural_tag, f"{joint}structural_tag"))
    if outputs is not None and not any(form.field.startswith("structured_outputs.") for form in forms):
        rule = "structured_outputs must have one of json, regex, choice, grammar, json_object and structural_tag; add it"
        raise ApiError(400, rule, param="structured_outputs", code="invalid_value")
    return forms


def _guided(name: str, value: Any, field: str) -> Form:
    if name == "json":
        return Form("json", _styled(_schema(value, field)), field)
    if name == "json_object":
        return Form("json", _styled(_ANY_OBJECT), field)
    if name == "regex":
        return Form("regex", value, field)
    if name == "choice":
        return Form("lark", "start: " + " | ".join(map(_quoted, dict.fromkeys(value))) + "\n", field)
    try:
        return Form("lark", any_to_lark(value), field)
    except Exception as error:  # whatever the converter of GBNF stumbles over
        raise ApiError(
            400, f"{field} is neither Lark nor GBNF: {error}; correct it", param=field, code="invalid_value"
        ) from error


def _structural(tag: StructuralTag, field: str) -> Form:
    structures, parts = [], []
    for index, structure in enumerate(tag.structures):
        place = f"{field}.structures[{index}]"
        trigger = next((text for text in tag.triggers if structure.begin.startswith(text)), None)
        if trigger is None:
            rule = f"{place}.begin ({structure.begin[:80]!r}) must begin with one of the triggers; add one"
            raise ApiError(400, rule, param=f"{place}.begin", code="invalid_value")
        schema = _styled(structure.schema_)
        parts.append(Form("json", schema, f"{place}.schema"))
        structures.append(StructTag(trigger=trigger, begin=structure.begin, grammar=schema, end=structure.end))
    return Form("lark", StructTag.to_grammar(structures, assume_special=False), field, tuple(parts))


def _schema(value: Any, field: str) -> dict[str, Any]:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{field} is not valid JSON: {error}; correct it", param=field, code="invalid_value") from error
    if not isinstance(schema, dict):
        raise ApiError(400, f"{field} must be a JSON schema, which is an object; change it", param=field, code="invalid_value")
    return schema


def _parameters(function: FunctionDefinition) -> str:
    """A function without parameters takes none."""
    schema = function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    return _styled({"type": "object", **schema}, lenient=not function.strict)


def _styled(schema: dict[str, Any], lenient: bool = False) -> str:
    """The schema as text, with how its JSON is to be written. lenient: keywords that cannot be enforced are left out."""
    own = schema.get("x-guidance")
    style = _JSON_STYLE | ({"lenient": True} if lenient else {}) | (own if isinstance(own, dict) else {})
    return json.dumps(schema | {"x-guidance": style})


def _check(form: Form) -> None:
    """ApiError (400) with the reason if no text has the form."""
    if len(form.text) > MAX_GRAMMAR_CHARACTERS:
        rule = f"{form.field} ({len(form.text)} characters) must have at most {MAX_GRAMMAR_CHARACTERS}; make it smaller"
        raise ApiError(400, rule, param=form.field, code="invalid_value")
    try:
        check_grammar(_grammar_of(form))
    except RequestError as error:
        reason = str(error).partition("some text can match: ")[2] or str(error)
        raise ApiError(400, f"{form.field} cannot be followed: {reason}", param=form.field, code="invalid_value") from error


def _grammar_of(form: Form) -> Grammar:
    return Grammar(kind="json_schema" if form.kind == "json" else form.kind, text=form.text)


def _check_total(functions: Sequence[FunctionDefinition]) -> None:
    """ApiError (400) for more than one grammar's worth of parameters: the time to check them grows faster than their size."""
    total = sum(len(_parameters(function)) for function in functions)
    if total > MAX_GRAMMAR_CHARACTERS:
        rule = (
            f"tools (parameters of {total} characters) must have at most {MAX_GRAMMAR_CHARACTERS}; send fewer, or smaller ones"
        )
        raise ApiError(400, rule, param="tools", code="invalid_value")


def _quoted(text: str) -> str:
    """A text in a Lark grammar, which has JSON's quotes and escapes."""
    return json.dumps(text)
