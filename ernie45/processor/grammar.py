"""Grammars over a tokenizer's vocabulary, compiled by llguidance.

Knows nothing about logits, requests or HTTP.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from threading import Lock

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ernie45.config.errors import RequestError
from ernie45.config.sampling import Grammar
from ernie45.processor.tokenizer import Tokenizer

NUM_CACHED = 256
NUM_CHECKED = 4096
# Bounds the work on one grammar to about 0.2 s (llguidance's own bound: 1.3 s); 1,000 properties with patterns still fit.
_LIMITS = LLParserLimits(initial_lexer_fuel=200_000, verbose_errors=False)
_SHOWN = 300


class GrammarCompiler:
    """Compiles grammars, each once as long as it is among the last `NUM_CACHED`. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: of the model, which may have rows beyond the tokenizer's tokens; these are never allowed.

        Control tokens are allowed only where a grammar names them: the text `<think>` inside a string is written in letters.
        """
        tokens = [tokenizer.bytes_of(token_id) for token_id in range(len(tokenizer))]
        self._tokens = _ll_tokenizer(tokens, sorted(tokenizer.control_ids.values()), vocab_size, tokenizer)
        self._cache: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher of its own at the grammar's beginning. RequestError if nothing can match the grammar."""
        key = grammar.kind, grammar.text
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
        if found is None:
            found = _compile(self._tokens, grammar)  # outside the lock: a large grammar takes its time
            with self._lock:
                self._cache[key] = found
                if len(self._cache) > NUM_CACHED:
                    self._cache.popitem(last=False)
        return found.deep_copy()


def check_grammar(grammar: Grammar, control_tokens: Sequence[str] = ()) -> None:
    """RequestError if nothing can match the grammar. Needs no model: the alphabet is bytes and the named control tokens.

    Takes up to a second for the largest, but only once: the outcome is remembered, also of those that cannot be.
    """
    if refusal := _refusal(grammar.kind, grammar.text, tuple(control_tokens)):
        raise RequestError(refusal)


def is_checked(grammar: Grammar) -> bool:
    """Whether `check_grammar` would answer at once."""
    return _refusal.knows(grammar.kind, grammar.text, ())


class _Remembered:
    """Outcomes of a check by digests of what was asked, the last `NUM_CHECKED` of them. Safe to call from several threads."""

    def __init__(self, check: Callable[[str, str, tuple[str, ...]], str | None]) -> None:
        self._check = check
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = Lock()

    def __call__(self, kind: str, text: str, control_tokens: tuple[str, ...]) -> str | None:
        key = self._key(kind, text, control_tokens)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        outcome = self._check(kind, text, control_tokens)
        with self._lock:
            self._known[key] = outcome
            if len(self._known) > NUM_CHECKED:
                self._known.popitem(last=False)
        return outcome

    def knows(self, kind: str, text: str, control_tokens: tuple[str, ...]) -> bool:
        with self._lock:
            return self._key(kind, text, control_tokens) in self._known

    @staticmethod
    def _key(*parts: object) -> bytes:
        return sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


@_Remembered
def _refusal(kind: str, text: str, control_tokens: tuple[str, ...]) -> str | None:
    """Why nothing can match; None if something can."""
    try:
        _compile(_byte_tokenizer(control_tokens), Grammar(kind=kind, text=text))  # pyright: ignore[reportArgumentType]
    except RequestError as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def _byte_tokenizer(control_tokens: tuple[str, ...]) -> LLTokenizer:
    tokens = [*(bytes([byte]) for byte in range(256)), *(name.encode() for name in control_tokens)]
    return _ll_tokenizer(tokens, range(256, len(tokens)), len(tokens))


class _Vocabulary:
    """What llguidance asks of a tokenizer: tokens as bytes, and how a forced piece of text is written in tokens."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_token_ids: Sequence[int], tokenizer: Tokenizer | None) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = special_token_ids[-1]
        self._tokenizer = tokenizer
        special = frozenset(special_token_ids)
        self._id_of = {data: index for index, data in enumerate(tokens) if data and index not in special}
        self._longest = max(map(len, self._id_of))

    def __call__(self, data: bytes) -> list[int]:
        """As the model's own tokenizer writes it, where that keeps the bytes; SentencePiece may put a space before a text."""
        if self._tokenizer is not None:
            ids = self._tokenizer.encode(data.decode(errors="replace"))
            if b"".join(self.tokens[token_id] for token_id in ids) == data:
                return ids
        return self._longest_matches(data)

    def _longest_matches(self, data: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(start + self._longest, len(data)), start, -1)
            end = next((end for end in ends if data[start:end] in self._id_of), None)
            if end is None:
                break  # bytes that no token has: llguidance goes on without a proposal for them
            ids.append(self._id_of[data[start:end]])
            start = end
        return ids


def _ll_tokenizer(
    tokens: Sequence[bytes], special_token_ids: Sequence[int], vocab_size: int, tokenizer: Tokenizer | None = None
) -> LLTokenizer:
    # A token without bytes, like a row of the model without a token, is in no grammar. llguidance wants an end token, which
    # it allows where the text may end. Which of a request's stop ids ends an answer is the engine's business: so it gets one
    # of its own, beyond the vocabulary.
    padded = [*tokens[:vocab_size], *[b""] * (vocab_size - len(tokens)), b"<|end of text|>"]
    special = [*(token_id for token_id in special_token_ids if token_id < vocab_size), vocab_size]
    return LLTokenizer(TokenizerWrapper(_Vocabulary(padded, special, tokenizer)), n_vocab=vocab_size + 1)


def _compile(tokens: LLTokenizer, grammar: Grammar) -> LLMatcher:
    build = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "lark": LLMatcher.grammar_from_lark,
    }[grammar.kind]
    try:
        matcher = LLMatcher(tokens, build(grammar.text), log_level=0, limits=_LIMITS)
    except ValueError as error:  # the text of a schema that is no JSON
        raise _refused(grammar, str(error)) from error
    if matcher.is_error():
        raise _refused(grammar, matcher.get_error())
    matcher.compute_bitmask()  # finds out whether there is a first token
    if matcher.is_stopped() and not matcher.is_accepting():
        raise _refused(grammar, "no text matches it")
    return matcher


def _refused(grammar: Grammar, reason: str) -> RequestError:
    text = grammar.text if len(grammar.text) <= _SHOWN else grammar.text[:_SHOWN] + "..."
    return RequestError(
        f"{grammar.kind} ({text!r}) must be one that some text can match: {' '.join(reason.split())[:_SHOWN]}; correct it"
    )
