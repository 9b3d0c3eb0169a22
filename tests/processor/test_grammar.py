"""Grammars over real vocabularies: random tokens among those allowed always make a text that matches."""

import json
import random
import re

import numpy as np
import pytest
import sentencepiece
from llguidance import LLMatcher

from ernie45.config.errors import RequestError
from ernie45.config.sampling import Grammar
from ernie45.processor import grammar as module
from ernie45.processor.added_tokens import AddedToken
from ernie45.processor.grammar import GrammarCompiler, check_grammar
from ernie45.processor.sentencepiece import tokenizer_json_from_sentencepiece
from ernie45.processor.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "größe": {"type": "integer", "minimum": 0, "maximum": 300},
        "tags": {"type": "array", "items": {"enum": ["百度", "é", "a b"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "größe", "tags", "ok"],
    "additionalProperties": False,
}


def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte fallback, space marks and a space put before every text, with control tokens behind, as ERNIE's."""
    prefix = tmp_path_factory.mktemp("sentencepiece") / "model"
    words = [f"word {number} and {number * 7} name tags ok true false größe" for number in range(200)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(words),
        model_prefix=str(prefix),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    data = prefix.with_suffix(".model").read_bytes()
    return Tokenizer(tokenizer_json_from_sentencepiece(data, [AddedToken(360, "<think>"), AddedToken(361, "</think>")]))


@pytest.fixture(scope="module", params=["shipped", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return (
        Tokenizer.from_dir("ernie45/assets/tiny") if request.param == "shipped" else sentencepiece_tokenizer(tmp_path_factory)
    )


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, len(tokenizer) + 5)


def allowed(matcher: LLMatcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")).tolist()


def random_text(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, seed: int) -> bytes:
    """Draw evenly among what is allowed until the text may end; None of the ids beyond the vocabulary but the end."""
    rng, matcher, end = random.Random(seed), compiler.matcher(grammar), len(tokenizer) + 5
    text = b""
    for _ in range(2000):
        ids = allowed(matcher)
        assert ids, text
        assert matcher.is_accepting() == (end in ids)
        if end in ids:
            return text
        token_id = rng.choice(ids)
        assert token_id not in tokenizer.control_ids.values()
        assert tokenizer.bytes_of(token_id)
        assert matcher.consume_token(token_id), matcher.get_error()
        text += tokenizer.bytes_of(token_id)
    raise AssertionError(text)


def test_random_json_is_valid(compiler: GrammarCompiler, tokenizer: Tokenizer):
    grammar = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
    texts = {random_text(compiler, tokenizer, grammar, seed) for seed in range(25)}
    assert len(texts) > 20
    for text in texts:
        value = json.loads(text.decode("utf-8"))
        assert list(value) == list(SCHEMA["properties"])
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 12
        assert value["größe"] in range(301)
        assert len(value["tags"]) <= 3
        assert set(value["tags"]) <= {"百度", "é", "a b"}
        assert isinstance(value["ok"], bool)
    assert any("百度" in json.loads(text)["tags"] for text in texts), "several bytes make one character"


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-zé]{2}", "(yes|no|vielleicht)", "ßß 北京 [a-z ]{4}"])
def test_random_text_matches_a_pattern(compiler: GrammarCompiler, tokenizer: Tokenizer, pattern: str):
    for seed in range(10):
        text = random_text(compiler, tokenizer, Grammar(kind="regex", text=pattern), seed).decode()
        assert re.fullmatch(pattern, text), text


def test_text_that_the_tokenizer_makes_is_accepted(compiler: GrammarCompiler, tokenizer: Tokenizer):
    value = {"name": "Zoë 山", "größe": 180, "tags": ["百度", "a b"], "ok": True}
    text = json.dumps(value, ensure_ascii=False)
    ids = tokenizer.encode(text)
    if tokenizer.bytes_of(ids[0]).startswith(b" "):  # the space that SentencePiece puts before a text
        ids = tokenizer.encode("{" + text)[len(tokenizer.encode("{")) :]
    assert b"".join(map(tokenizer.bytes_of, ids)) == text.encode()
    matcher = compiler.matcher(Grammar(kind="json_schema", text=json.dumps(SCHEMA)))
    assert matcher.consume_tokens(ids), matcher.get_error()
    assert matcher.is_accepting()


def test_a_grammar_may_name_control_tokens(compiler: GrammarCompiler, tokenizer: Tokenizer):
    matcher = compiler.matcher(Grammar(kind="lark", text='start: <think> "a"'))
    assert allowed(matcher) == [tokenizer.control_ids["<think>"]]


def test_each_matcher_is_its_own_and_a_grammar_is_compiled_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "NUM_CACHED", 2)
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    compiled: list[str] = []
    compile_grammar = module._compile
    monkeypatch.setattr(
        module, "_compile", lambda tokens, grammar: compiled.append(grammar.text) or compile_grammar(tokens, grammar)
    )
    grammars = [Grammar(kind="regex", text=text) for text in ("ab", "cd", "ef")]
    first, second = compiler.matcher(grammars[0]), compiler.matcher(grammars[0])
    first_ids = allowed(first)
    assert first.consume_token(next(token_id for token_id in first_ids if tokenizer.bytes_of(token_id) == b"a"))
    assert allowed(second) == first_ids
    for grammar in (grammars[1], grammars[0], grammars[2], grammars[0], grammars[1]):
        compiler.matcher(grammar)
    assert compiled == ["ab", "cd", "ef", "cd"], "the one that was asked for longest ago went"


BAD = [
    ("json_schema", "{", "json_schema ('{')"),
    ("json_schema", "[1]", "schema must be an object or boolean"),
    ("json_schema", "false", "Unsatisfiable"),
    ("json_schema", '{"type": "nope"}', "Invalid type: nope"),
    ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}', "minLength"),
    ("json_schema", '{"$ref": "#/nowhere"}', "does not exist"),
    ("json_schema", '{"not": {}}', "Unimplemented"),
    ("regex", "(", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", "[^\x00-\U0010ffff]", "no text matches it"),
    ("lark", "start: nothing", "unknown name"),
    ("lark", 'x: "a"', "no start rule"),
    ("lark", 'start: start "a"', "no text matches it"),
    ("lark", "start: <nope>", "unknown special token"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), BAD)
def test_what_nothing_can_match_is_refused(compiler: GrammarCompiler, kind: str, text: str, reason: str):
    grammar = Grammar(kind=kind, text=text)  # pyright: ignore[reportArgumentType]
    for check in (compiler.matcher, check_grammar):
        with pytest.raises(RequestError) as error:
            check(grammar)
        assert reason in str(error.value)
        assert str(error.value).startswith(kind)
        assert str(error.value).endswith("; correct it")
        assert "\n" not in str(error.value)


def test_good_grammars_pass_without_a_model():
    check_grammar(Grammar(kind="json_schema", text=json.dumps(SCHEMA)))
    check_grammar(Grammar(kind="json_schema", text='{"type": "object"}'))
    check_grammar(Grammar(kind="regex", text=""".*"""))
    check_grammar(Grammar(kind="lark", text='start: <tool_call> "{}" </tool_call>'), ("<tool_call>", "</tool_call>"))
