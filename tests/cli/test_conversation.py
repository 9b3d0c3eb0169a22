"""Questions in, pieces of thought and answer out, turns kept or forgotten."""

from pathlib import Path

from PIL import Image

from ernie45.commands.conversation import Conversation, media_source


def test_thought_and_answer_come_apart_and_are_counted(conversation: Conversation) -> None:
    deltas = list(conversation.ask("What is 3 + 4?"))
    assert "".join(text for part, text in deltas if part == "reasoning") == "3 and 4"
    assert "".join(text for part, text in deltas if part == "content") == "7"
    usage = conversation.usage
    assert usage is not None
    assert usage.num_tokens == len("3 and 4") + 1 + len("7") + 1  # closing tag and end of answer are tokens too
    assert usage.num_reasoning_tokens == len("3 and 4") + 1
    assert usage.finish_reason == "stop"
    assert "8 of them thought" in str(usage)


def test_turns_are_remembered_until_cleared(conversation: Conversation, llm) -> None:
    list(conversation.ask("first"))
    list(conversation.ask("second"))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "user", "assistant"]
    assert len(llm.asked[1][0]) > len(llm.asked[0][0])
    conversation.clear()
    list(conversation.ask("first"))
    assert llm.asked[2][0].token_ids.tolist() == llm.asked[0][0].token_ids.tolist()


def test_an_interrupted_turn_never_happened(conversation: Conversation, llm) -> None:
    stream = conversation.ask("What is 3 + 4?")
    next(stream)
    assert llm.engine.running
    stream.close()
    assert conversation.messages == []
    assert not llm.engine.running


def test_without_thinking_everything_is_the_answer(conversation: Conversation, llm) -> None:
    conversation.set_thinking(False)
    llm.script = "7"
    assert [(part, text) for part, text in conversation.ask("What is 3 + 4?")] == [("content", "7")]
    assert conversation.messages[-1] == {"role": "assistant", "content": "7"}


def test_pictures_stand_before_the_question(conversation: Conversation, llm, tmp_path: Path) -> None:
    Image.new("RGB", (56, 28)).save(tmp_path / "a.png")
    list(conversation.ask("What is it?", [str(tmp_path / "a.png")]))
    inputs = llm.asked[0][0]
    assert [item.kind for item in inputs.media] == ["image"]
    assert inputs.is_vision.sum() == inputs.media[0].length + 2


def test_an_address_stays_one_and_a_path_becomes_one() -> None:
    assert media_source("https://example.org/a.png") == "https://example.org/a.png"
    assert media_source("data:image/png;base64,AA") == "data:image/png;base64,AA"
    assert media_source("dir/a.png") == Path("dir/a.png")


def test_several_prompts_are_one_batch_in_order(conversation: Conversation) -> None:
    results = conversation.complete(["a", "bcd"], chat=False)
    assert [result.num_prompt_tokens for result in results] == [1, 3]
    assert results[0].text == "3 and 4</think>7"
    assert conversation.complete(["a"], chat=True)[0].reasoning == "3 and 4"
