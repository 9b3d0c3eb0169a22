"""Our conversion of tokenizer.model against the sentencepiece library, on small models trained here."""

import io
import random
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.errors import CheckpointError
from ernie45.processor.added_tokens import AddedToken, ernie_added_tokens
from ernie45.processor.sentencepiece import read_sentencepiece, tokenizer_json_from_sentencepiece
from ernie45.processor.tokenizer import IncrementalDecoder, Tokenizer

SENTENCE = "the picture shows digits one two three a cat and dog sum of 12 and 34 is 46 小猫 图片 数字 über naïve été Привет"
WORDS = SENTENCE.split()


def train(**options) -> bytes:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=8)) + "." for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
        **{
            "vocab_size": 420,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "user_defined_symbols": [*"0123456789", "\n", "<|begin_of_sentence|>"],
            **options,
        },
    )
    return model.getvalue()


def pair_of(model: bytes) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    return theirs, Tokenizer(tokenizer_json_from_sentencepiece(model, []))


@cache
def mapped_pair() -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    return pair_of(train(normalization_rule_name="nfkc", user_defined_symbols=[]))


VARIANTS = {
    "ernie": {},
    "dummy prefix": {"add_dummy_prefix": True, "user_defined_symbols": []},
    "spaces removed": {"remove_extra_whitespaces": True, "user_defined_symbols": []},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def pair(request) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    return pair_of(train(**VARIANTS[request.param]))


TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="ab the 12\n小猫ü."),
    st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "é", "🎈", "7"])).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_equals_the_sentencepiece_library(pair, text):
    theirs, ours = pair
    text = text.replace("\0", "")  # their C strings end there
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.data())
def test_decodes_like_the_library_whole_and_in_pieces(pair, text, data):
    theirs, ours = pair
    ids = theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)
    decoder, pieces, start = IncrementalDecoder(ours), [], 0
    while start < len(ids):
        end = data.draw(st.integers(start + 1, len(ids)))
        pieces.append(decoder.push(ids[start:end]))
        start = end
    assert "".join(pieces) + decoder.flush() == ours.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab the １２Ａﬁ①ｶ小猫é\u3000\t."))
def test_a_character_map_is_applied(text):
    """Without combining marks: the tokenizers library maps whole grapheme clusters, SentencePiece characters."""
    theirs, ours = mapped_pair()
    assert ours.encode(text) == theirs.encode(text)


def test_a_control_token_typed_as_text_stays_text():
    ours = Tokenizer(tokenizer_json_from_sentencepiece(train(), []))
    control = ours.id_of("<|begin_of_sentence|>")
    assert control not in ours.encode("say <|begin_of_sentence|> and <s>")
    assert ours.encode("<|begin_of_sentence|>", allow_special=True) == [control]
    assert ours.decode(ours.encode("say <|begin_of_sentence|> and <s>")) == "say <|begin_of_sentence|> and <s>"


def test_ernies_added_tokens_follow_the_vocabulary():
    model = train()
    size = len(read_sentencepiece(model).pieces)
    ours = Tokenizer(tokenizer_json_from_sentencepiece(model, ernie_added_tokens(size)))
    assert ours.id_of("<|IMAGE_PLACEHOLDER|>") == size
    assert len(ours) == size + 3073
    assert ours.encode("a<|LOC_12|><|LOC_1|>2", allow_special=True)[1:3] == [size + 2 + 12, size + 2 + 1]


def test_the_released_ids():
    ids = {token.content: token.id for token in ernie_added_tokens()}
    assert ids["<|IMAGE_PLACEHOLDER|>"] == 100295
    assert ids["<|LOC_0|>"] == 100297
    assert ids["<|LOC_1000|>"] == 101297
    assert ids["<|IMAGE_SEP|>"] == 101303
    assert [ids[f"<|{name}|>"] for name in ("IMAGE_START", "IMAGE_END", "VIDEO_START", "VIDEO_END")] == [
        101304, 101305, 101306, 101307
    ]  # fmt: skip
    assert (ids["<|ASR_START|>"], ids["<|ASR_END|>"]) == (101308, 101309)
    assert ids["<|VIDEO_PLACEHOLDER|>"] == 103367
    assert sorted(ids.values()) == list(range(100295, 103368))


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f", bytes(100), b"{}"])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        read_sentencepiece(data)


def test_a_unigram_model_is_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=model,
        vocab_size=45,
        model_type="unigram",
        minloglevel=2,
        num_threads=1,
    )
    with pytest.raises(CheckpointError, match="must be BPE"):
        tokenizer_json_from_sentencepiece(model.getvalue(), [])


def test_an_added_token_with_another_id_than_in_the_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match="different tokenizers"):
        tokenizer_json_from_sentencepiece(train(), [AddedToken(77, "<|begin_of_sentence|>")])
