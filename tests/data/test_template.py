"""Records become what the model sees when it is asked, with labels on the answers: equal to the tiny data's own encoder."""

import base64
import io
import pickle
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError, DataError
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.records import Document, Pair, Prompt, Record
from ernie45.data.template import RecordEncoder, Size
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.encode import SampleEncoder
from ernie45.data.tiny.mixture import makers
from ernie45.data.tiny.model import tiny_processor
from ernie45.data.tiny.strips import StripWriter
from ernie45.processor import Processor
from ernie45.processor.template import BUILT_IN_TEMPLATE, ChatTemplate


@pytest.fixture(scope="module")
def processor() -> Processor:
    return tiny_processor()


def encoder(processor: Processor, **settings: Any) -> RecordEncoder:
    return RecordEncoder(processor, DataConfig(**settings))


def talk(*texts: str, **about: Any) -> Record:
    roles = ("user", "assistant")
    return Record(messages=tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts)), **about)


def learnt(made: Labelled, processor: Processor) -> str:
    """The labelled tokens as text, runs parted by a broken bar."""
    text, gap = b"", False
    for label in made.labels_S.tolist():
        if label == IGNORED:
            gap = True
            continue
        text += "¦".encode() if gap and text else b""
        text += b"</s>" if label == processor.tokens.eos else processor.tokenizer.bytes_of(label)
        gap = False
    return text.decode()


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_it_equals_the_tiny_encoder(processor: Processor, thinking: bool, loss_on: str) -> None:
    made = encoder(processor, loss_on=loss_on, token_budget=8192)
    for number, maker in enumerate(makers(StripWriter(training_digits("fit"))).values()):
        sample = maker(Random(number))
        expected = SampleEncoder(processor).encode(sample, thinking, whole_text=loss_on == "all")
        record = Record(messages=tuple(sample.messages(thinking)), origin="x:1")
        found = made.encode(record)
        assert found.inputs.token_ids.tolist() == expected.inputs.token_ids.tolist()
        assert found.labels_S.tolist() == expected.labels_S.tolist()
        assert (found.inputs.positions == expected.inputs.positions).all()
        assert (found.inputs.patches == expected.inputs.patches).all()
        assert made.measure(record) == Size(len(found.inputs), len(found.inputs.patches), found.num_labels)


def test_both_answer_forms(processor: Processor) -> None:
    thought = Record(
        messages=(
            {"role": "user", "content": "What is 1+1?"},
            {"role": "assistant", "content": "2", "reasoning_content": "one and one"},
        )
    )
    inline = talk("What is 1+1?", "<think>\none and one\n</think>\n\n2")
    auto = encoder(processor)
    assert learnt(auto.encode(thought), processor) == "\none and one\n</think>\n\n2</s>"
    assert auto.encode(inline).labels_S.tolist() == auto.encode(thought).labels_S.tolist()
    assert learnt(auto.encode(talk("What is 1+1?", "2")), processor) == "2</s>"
    plain = auto.encode(talk("What is 1+1?", "2"))
    for record in (replace(thought, thinking=False), replace(inline, thinking=False)):
        assert auto.encode(record).inputs.token_ids.tolist() == plain.inputs.token_ids.tolist()
    assert learnt(encoder(processor, thinking="off").encode(thought), processor) == "2</s>"
    empty = encoder(processor, thinking="on").encode(talk("What is 1+1?", "2"))
    assert learnt(empty, processor) == "\n\n</think>\n\n2</s>", "an empty thought is learnt where thinking is asked for"


def test_turns_marks_and_history(processor: Processor) -> None:
    record = talk("1+1?", "2", "2+2?", "4", "3+3?", "6")
    assert learnt(encoder(processor).encode(record), processor) == "6</s>"
    assert learnt(encoder(processor, loss_on="turns").encode(record), processor) == "2</s>¦4</s>¦6</s>"
    for loss_on in ("answer", "turns"):
        marked = encoder(processor, loss_on=loss_on).encode(replace(record, trained=(True, False, True)))
        assert learnt(marked, processor) == "2</s>¦6</s>"
    whole = learnt(encoder(processor, loss_on="all").encode(replace(record, trained=(True, False, True))), processor)
    assert whole.count("¦") == 1
    assert "User: 2+2?" in whole
    assert "4" not in whole.split("¦")[1]
    with pytest.raises(DataError, match="no answer that carries loss"):
        encoder(processor).encode(replace(record, trained=(False,) * 3))


def test_thoughts_of_earlier_turns_are_dropped(processor: Processor) -> None:
    record = talk("1+1?", "<think>\nno\n</think>\n\n2", "2+2?", "<think>\nyes\n</think>\n\n4")
    made = encoder(processor, loss_on="turns").encode(record)
    assert learnt(made, processor) == "2</s>¦\nyes\n</think>\n\n4</s>"


def test_the_prompt_is_what_the_model_is_asked_with(processor: Processor) -> None:
    """What stands before the first label is the generation prompt of the chat."""
    record = talk("1+1?", "2")
    for thinking in (False, True):
        made = encoder(processor).encode(replace(record, thinking=thinking))
        start = int(np.flatnonzero(made.labels_S != IGNORED)[0]) + 1
        prompt = encoder(processor).prompt_input(Prompt(messages=record.messages[:1], answer="2"), thinking)
        assert made.inputs.token_ids[:start].tolist() == prompt.token_ids.tolist()


def test_turns_with_pictures_and_other_templates(processor: Processor) -> None:
    """Pictures in several turns; answers that begin alike, or with what stands in for them; a template that keeps thoughts."""
    picture = {"type": "image", "image": png(56, 28)}
    messages = []
    for answer in ("2", "2", "\u2603 2", "<think>\none\n</think>\n\n2"):
        messages += [
            {"role": "user", "content": [picture, {"type": "text", "text": "2"}]},
            {"role": "assistant", "content": answer},
        ]
    record = Record(messages=tuple(messages))
    made = encoder(processor, loss_on="turns").encode(record)
    assert learnt(made, processor) == "2</s>¦2</s>¦\u2603 2</s>¦\none\n</think>\n\n2</s>"
    assert len(made.inputs.media) == 4
    keeping = BUILT_IN_TEMPLATE.replace("{%- if loop.index0 > count.last_user %}", "{%- if true %}")
    own = Processor(processor.tokenizer, tokens=processor.tokens, config=processor.config, template=ChatTemplate(keeping))
    kept = encoder(own, loss_on="turns").encode(record)
    assert learnt(kept, processor) == learnt(made, processor), "what stands in front of an earlier answer is not learnt"


def test_calls_of_tools_are_answers_too(processor: Processor) -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    messages = (
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "ask"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2"},
    )
    made = encoder(processor, loss_on="turns").encode(Record(messages=messages, tools=(call,)))
    first, last = learnt(made, processor).split("¦")
    assert first.startswith("\nask\n</think>\n\n<tool_call>")
    assert first.endswith("</tool_call>\n</s>")
    assert last == "2</s>"


def test_the_sides_of_a_pair_carry_loss_on_what_differs(processor: Processor) -> None:
    prompt = tuple(talk("1+1?", "2", "2+2?").messages)
    pair = Pair(prompt=prompt, chosen=tuple(talk("", "4").messages[1:]), rejected=tuple(talk("", "5").messages[1:]))
    made = [encoder(processor, loss_on="turns").encode(pair.side(chosen)) for chosen in (True, False)]
    assert [learnt(side, processor) for side in made] == ["4</s>", "5</s>"]


def png(width: int, height: int, orientation: int = 1) -> bytes:
    image, file = Image.new("RGB", (width, height), "red"), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_come_from_headers(processor: Processor, tmp_path: Path, orientation: int) -> None:
    data = png(90, 30, orientation)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    made = encoder(processor)
    for part in (
        {"type": "image", "image": tmp_path / "a.png"},
        {"type": "image", "image": data},
        {"type": "image_url", "image_url": {"url": url}},
    ):
        record = Record(messages=({"role": "user", "content": [part]}, {"role": "assistant", "content": "red"}))
        found = made.encode(record)
        assert made.measure(record) == Size(len(found.inputs), len(found.inputs.patches), found.num_labels)
        assert (found.labels_S[found.inputs.is_vision] == IGNORED).all()


def test_bad_pictures_are_named(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(png(90, 90)[:60])
    made = encoder(processor)

    def record(part: dict) -> Record:
        messages = ({"role": "user", "content": [part]}, {"role": "assistant", "content": "red"})
        return Record(messages=messages, origin="set.jsonl:3")

    for name, message in (("half.png", "half.png"), ("gone.png", "No such file|gone.png")):
        bad = record({"type": "image", "image": tmp_path / name})
        with pytest.raises(DataError, match=rf"set.jsonl:3: messages\[0\].content\[0\].image .*({message})"):
            made.encode(bad)
    with pytest.raises(DataError, match=r"set.jsonl:3: .* is on another machine; .*data.allow_remote=true"):
        made.encode(record({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}))


def test_a_model_that_cannot_see_is_given_no_pictures(processor: Processor) -> None:
    blind = Processor(processor.tokenizer, tokens=processor.tokens, config=processor.config, accepts_media=False)
    part = {"type": "image", "image": png(28, 28)}
    chat = Record(messages=({"role": "user", "content": [part]}, {"role": "assistant", "content": "red"}), origin="a:1")
    for record in (chat, Document(parts=(part,), origin="a:1")):
        with pytest.raises(DataError, match="a:1: .*this model reads text only"):
            encoder(blind).encode(record)


def test_too_long_for_the_context(processor: Processor) -> None:
    with pytest.raises(DataError, match=r"s:9 has \d+ tokens, more than the context of 20; .*data.context"):
        encoder(processor, context=20).encode(talk("What is 1+1?", "1234567890" * 3, origin="s:9"))


def test_documents_are_learnt_whole(processor: Processor) -> None:
    made = encoder(processor).encode(Document(parts=({"type": "text", "text": "red <think> 5"},)))
    assert learnt(made, processor) == "red <think> 5</s>"
    control = processor.tokenizer.id_of("<|end_of_sentence|>")
    text = encoder(processor).encode(Document(parts=({"type": "text", "text": "<|end_of_sentence|>"},)))
    assert control not in text.inputs.token_ids, "control tokens written in a text stay text"
    picture = {"type": "image", "image": png(28, 56)}
    parts = ({"type": "text", "text": "a"}, picture, {"type": "text", "text": "b"}, picture)
    mixed = encoder(processor).encode(Document(parts=parts))
    assert len(mixed.inputs.media) == 2
    assert not (set(mixed.labels_S[mixed.labels_S != IGNORED].tolist()) & set(processor.tokens.vision_ids))
    assert learnt(mixed, processor) == "aPicture 1:¦bPicture 2:¦</s>"
    found = encoder(processor).measure(Document(parts=parts))
    assert found == Size(len(mixed.inputs), len(mixed.inputs.patches), mixed.num_labels)


def test_a_template_that_answers_in_another_form_is_refused(processor: Processor) -> None:
    """Its prompt has the empty thoughts, its finished answers have not: the model would learn what it is never asked."""
    source = BUILT_IN_TEMPLATE.replace("{%- if loop.index0 > count.last_user %}", "{%- if false %}")
    own = Processor(processor.tokenizer, tokens=processor.tokens, config=processor.config, template=ChatTemplate(source))
    with pytest.raises(ConfigError, match=r"chat template must .*data.template=built-in"):
        encoder(own).encode(talk("1+1?", "2"))
    same = encoder(own, template="built-in").encode(talk("1+1?", "2"))
    assert same.inputs.token_ids.tolist() == encoder(processor).encode(talk("1+1?", "2")).inputs.token_ids.tolist()


def test_it_can_go_to_another_process(processor: Processor) -> None:
    made = encoder(processor, loss_on="turns")
    there = pickle.loads(pickle.dumps(made))
    record = talk("1+1?", "2", "2+2?", "4")
    assert there.encode(record).labels_S.tolist() == made.encode(record).labels_S.tolist()
    assert there.config == made.config
