"""Tokenizers from tokenizer.json: against the tokenizers library, and where control tokens must stay text."""

import copy
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.processor.added_tokens import AddedToken
from ernie45.processor.tokenizer import IncrementalDecoder, Tokenizer
from ernie45.processor.vocabulary import special_pattern


@pytest.fixture(scope="module")
def data(shared_tokenizer_data) -> dict:
    return shared_tokenizer_data


@pytest.fixture(scope="module")
def ours(data) -> Tokenizer:
    return Tokenizer(data)


@pytest.fixture(scope="module")
def theirs(data) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(data))


CONTROL = ["<|end_of_sentence|>", "<|IMAGE_PLACEHOLDER|>", "<s>", "</s>", "<think>", "</think>"]
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from([*CONTROL, "<|", "|>", "<", "digits", " 12", "é", "🎈", "\n"])).map("".join)
)


@settings(max_examples=300)
@given(text=TEXTS)
def test_with_control_tokens_allowed_it_is_the_library(ours, theirs, text):
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids


@settings(max_examples=300)
@given(text=TEXTS)
def test_text_stays_text_and_comes_back(ours, text):
    ids = ours.encode(text)
    assert not set(ids) & set(ours.control_ids.values())
    assert ours.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300)
@given(data=st.data())
def test_a_stream_joins_to_the_whole_and_never_cuts_a_character(ours, theirs, data):
    ids = data.draw(st.lists(st.integers(0, len(ours) + 3), max_size=40))
    decoder, pieces, start = IncrementalDecoder(ours), [], 0
    while start < len(ids):
        end = data.draw(st.integers(start + 1, len(ids)))
        pieces.append(decoder.push(ids[start:end]))
        start = end
    pieces.append(decoder.flush())
    assert "".join(pieces) == ours.decode(ids)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


def test_half_a_character_waits(ours):
    balloon = ours.encode("🎈")
    decoder = IncrementalDecoder(ours)
    assert len(balloon) == 4
    assert [decoder.push([token]) for token in balloon] == ["", "", "", "🎈"]
    assert decoder.push(balloon[:2]) == ""
    assert decoder.flush() == "\ufffd"


def test_control_tokens_are_hidden_and_tags_of_the_answer_are_not(ours):
    ids = ours.encode("<think>\n3 and 4\n</think>\n\n7</s>", allow_special=True)
    assert ours.decode(ids) == "<think>\n3 and 4\n</think>\n\n7"
    assert ours.decode(ids, skip_special_tokens=False) == "<think>\n3 and 4\n</think>\n\n7</s>"


def test_ids_and_length(ours):
    assert ours.id_of("<|IMAGE_PLACEHOLDER|>") == 5
    assert ours.id_of("no such token") is None
    assert len(ours) == 320


def test_saved_and_read_again(ours, tmp_path):
    ours.save(tmp_path)
    again = Tokenizer.from_dir(tmp_path)
    assert again.data == ours.data


def test_added_tokens_that_are_text_are_cut_out_of_text_under_their_own_id(data):
    """Also when a control token outside the vocabulary stands before them, which the plain copy leaves out."""
    data = copy.deepcopy(data)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] += [
        {"id": 320, "content": "<|new|>", "special": True, **flags},
        {"id": 321, "content": "12", "special": False, **flags},
    ]
    ours, theirs = Tokenizer(data), tokenizers.Tokenizer.from_str(json.dumps(data))
    assert ours.encode("a12b") == theirs.encode("a12b", add_special_tokens=False).ids
    assert 321 in ours.encode("a12b")
    assert 320 not in ours.encode("<|new|>")
    assert ours.encode("<|new|>", allow_special=True) == [320]


def test_a_vocabulary_that_takes_whole_words_cannot_smuggle_control_tokens(data):
    data = copy.deepcopy(data)
    data["model"]["ignore_merges"] = True
    data["pre_tokenizer"] = None
    ours = Tokenizer(data)
    assert ours.encode("<think>") != [ours.id_of("<think>")]


def test_a_token_that_swallows_white_space_does():
    tokens = [AddedToken(1, "<a>"), AddedToken(2, "<m>", lstrip=True)]
    pattern = special_pattern(tokens)
    assert pattern is not None
    assert pattern.split("x <m> y <a> z") == ["x", " <m>", " y ", "<a>", " z"]


def test_the_longest_token_wins_and_pattern_characters_are_plain():
    pattern = special_pattern([AddedToken(1, "<|a|>"), AddedToken(2, "<|a|>b"), AddedToken(3, ".*")])
    assert pattern is not None
    assert pattern.split("<|a|>bc<|a|>.*x") == ["", "<|a|>b", "c", "<|a|>", "", ".*", "x"]


def test_a_lone_surrogate_is_refused(ours):
    with pytest.raises(RequestError, match="lone surrogate"):
        ours.encode("a\ud800b")


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model": {"type": "WordPiece", "vocab": {}}}', '{"model": {"type": "BPE", "vocab": {}}}']
)
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)


def test_an_unknown_decoder_is_refused(data):
    data = copy.deepcopy(data) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    with pytest.raises(CheckpointError, match="decoder 'WordPiece'"):
        Tokenizer(data)
