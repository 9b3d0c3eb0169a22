"""One answer's place in its grammar: where it begins and ends, what is banned, drafts, and what no state is lost by."""

from array import array
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ernie45.config.sampling import Grammar, SamplingParams
from ernie45.engine.grammar import GrammarState
from ernie45.engine.history import History
from ernie45.engine.llm import LLM
from ernie45.processor import Processor
from ernie45.processor.grammar import GrammarCompiler
from ernie45.processor.tokenizer import Tokenizer

STOP = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir("ernie45/assets/tiny")


@pytest.fixture(scope="module")
def make_state(tokenizer: Tokenizer) -> Callable[..., GrammarState]:
    compiler = GrammarCompiler(tokenizer, len(tokenizer))

    def make(pattern: str, after: int | None = None, stop_token_ids: Sequence[int] = (STOP,)) -> GrammarState:
        return GrammarState(compiler.matcher(Grammar(kind="regex", text=pattern)), after, stop_token_ids, len(tokenizer))

    return make


def texts(tokenizer: Tokenizer, allowed_V: np.ndarray | None) -> set[bytes]:
    assert allowed_V is not None
    return {tokenizer.bytes_of(token_id) for token_id in np.flatnonzero(allowed_V).tolist()}


def test_it_may_end_exactly_where_the_text_may(make_state: Callable[..., GrammarState], tokenizer: Tokenizer):
    state = make_state("ab?")
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    end = tokenizer.bytes_of(STOP)
    assert texts(tokenizer, state.allowed(())) <= {b"a", b"ab"}
    state.advance([a])
    assert texts(tokenizer, state.allowed(())) == {b"b", end}
    state.advance([b])
    assert texts(tokenizer, state.allowed(())) == {end}
    state.advance([STOP])
    assert texts(tokenizer, state.allowed(())) == {end}


def test_bans_hold_until_nothing_else_is_left(make_state: Callable[..., GrammarState], tokenizer: Tokenizer):
    state = make_state("[ab]c")
    (a,), (b,), (c,) = map(tokenizer.encode, "abc")
    allowed = state.allowed([a])
    assert allowed is not None
    assert not allowed[a]
    assert allowed[b]
    state.advance([b])
    assert texts(tokenizer, state.allowed([c])) == {b"c"}
    state.advance([c])
    assert texts(tokenizer, state.allowed([STOP])) == {tokenizer.bytes_of(STOP)}


def test_a_stop_token_that_is_text_ends_and_is_not_written(make_state: Callable[..., GrammarState], tokenizer: Tokenizer):
    (b,) = tokenizer.encode("b")
    assert texts(tokenizer, make_state("[ab]", stop_token_ids=[b]).allowed(())) == {b"a"}
    forced = make_state("b", stop_token_ids=[b])
    assert texts(tokenizer, forced.allowed(())) == {b"b"}, "the only way on"


def test_it_begins_behind_its_token(make_state: Callable[..., GrammarState], tokenizer: Tokenizer):
    end = tokenizer.control_ids["</think>"]
    state = make_state("1", after=end)
    state.advance(tokenizer.encode("any thought 123"))
    assert state.allowed(()) is None
    state.advance([end])
    assert texts(tokenizer, state.allowed(())) == {b"1"}


def test_a_draft_leaves_no_trace(make_state: Callable[..., GrammarState], tokenizer: Tokenizer):
    end = tokenizer.control_ids["</think>"]
    state = make_state("12", after=end)
    (one,), (two,) = tokenizer.encode("1"), tokenizer.encode("2")
    assert texts(tokenizer, state.ahead([end, one]).allowed(())) == {b"2"}
    assert state.allowed(()) is None
    state.advance([end])
    wrong = state.ahead([two])  # a guess against the grammar: whatever comes behind it will not be taken
    assert wrong.allowed(()) is not None
    assert texts(tokenizer, state.allowed(())) == {b"1"}


def test_what_cannot_go_on_ends(
    make_state: Callable[..., GrammarState], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
):
    """As when llguidance reaches a bound on its work in the middle of an answer."""
    state = make_state("aaaa")
    state.advance(tokenizer.encode("b"))
    assert texts(tokenizer, state.allowed(())) == {tokenizer.bytes_of(STOP)}
    assert "ends here" in caplog.text


@pytest.mark.parametrize(("pattern", "reason"), [("a{100000}", "length"), ("a{3}", "stop")])
def test_an_answer_that_is_no_whole_text_is_cut_off_and_not_complete(pattern: str, reason: str, tokenizer: Tokenizer):
    """llguidance's bound stops the first in the middle: clients must not take it for a text of the grammar."""
    llm = LLM.load("tiny")
    inputs = Processor.from_dir("ernie45/assets/tiny").encode_chat([{"role": "user", "content": "Say a."}])
    params = SamplingParams(grammar=Grammar(kind="regex", text=pattern), stop_token_ids=(STOP,), max_tokens=50)
    (answer,) = llm.generate([inputs], params)
    assert (answer.finish_reason, answer.stop_token_id) == (reason, STOP)


def test_a_history_made_anew_comes_to_the_same_place(tokenizer: Tokenizer):
    """Tokens are all that a preempted or moved request needs to keep."""
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    grammar = Grammar(kind="json_schema", text='{"type": "array", "items": {"enum": ["é", "小", 12]}, "minItems": 3}')
    params = SamplingParams(grammar=grammar, stop_token_ids=(STOP,), min_tokens=4)
    prompt = tokenizer.encode("a list:")
    tokens = array("q", prompt)
    followed = History(params, tokens, len(prompt), len(tokenizer))
    followed.follow_grammar(compiler.matcher(grammar))
    for token_id in tokenizer.encode('["小", 12, "é"]'):
        found = followed.constraint().allowed
        anew = History(params, tokens, len(prompt), len(tokenizer))
        anew.follow_grammar(compiler.matcher(grammar))
        expected = anew.constraint().allowed
        assert found is not None
        assert expected is not None
        assert np.array_equal(found, expected)
        assert found[token_id]
        tokens.append(token_id)
    final = followed.constraint().allowed
    assert final is not None
    assert final[STOP]
