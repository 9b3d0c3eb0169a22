"""The tokenizer of the tiny model."""

from ernie45.data.tiny.vocabulary import SPECIAL_NAMES, VOCAB_SIZE, train_tokenizer
from ernie45.processor import Processor


def test_size_specials_digits_and_newlines(processor: Processor) -> None:
    tokenizer = processor.tokenizer
    assert len(tokenizer) == VOCAB_SIZE <= 640
    assert [tokenizer.id_of(name) for name in SPECIAL_NAMES] == list(range(len(SPECIAL_NAMES)))
    assert len({tuple(tokenizer.encode(digit)) for digit in "0123456789"}) == 10
    assert len(tokenizer.encode("4071")) == 4
    assert tokenizer.encode("\n\n12") == 2 * tokenizer.encode("\n") + tokenizer.encode("12")


def test_any_text_goes_round(processor: Processor) -> None:
    for text in ("What is 34+7?", "Grüße, 你好 🙂\t!", "  two  spaces ", "<think>"):
        assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_training_is_repeatable(processor: Processor) -> None:
    small = train_tokenizer(num_samples=300)
    assert small.data == train_tokenizer(num_samples=300).data
    assert small.data != train_tokenizer(seed=1, num_samples=300).data


def test_skills_need_few_tokens(processor: Processor) -> None:
    for text, most in (("Add the digits.", 5), ("\nAssistant: ", 4), ("User: Picture 1:", 6), ("red circle, blue square", 6)):
        assert len(processor.tokenizer.encode(text)) <= most, text
