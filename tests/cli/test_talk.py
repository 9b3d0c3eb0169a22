"""`chat` and `generate` at the command line, with a scripted engine."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ernie45 import cli
from ernie45.commands.conversation import Conversation
from ernie45.commands.dialogue import Dialogue, show_answer
from ernie45.commands.terminal import Terminal
from ernie45.processor.reasoning import Delta


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, conversation: Conversation):
    """Runs a dialogue over the given lines."""

    def talk(*lines: str) -> None:
        typed: Iterator[str] = iter(lines)

        def read(_prompt: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        Dialogue(conversation).run()

    return talk


def test_one_answer(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "What is 3 + 4?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "7\n"
    assert captured.err.startswith("thinking: 3 and 4\n(")


def test_the_question_may_come_from_a_pipe(
    conversation: Conversation, llm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 3 + 4?\n"))
    assert cli.main(["chat", "--no-thinking", "--max-tokens", "9"]) == 0
    assert llm.asked[0][1].max_tokens == 9
    assert "</think>" in capsys.readouterr().out  # without a thought to close, the tag is text


def test_generate_prints_a_json_line_for_each_prompt(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--json", "--chat", "a", "b"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["7", "7"]
    assert set(lines[0]) == {"text", "reasoning", "finish_reason", "num_prompt_tokens", "num_tokens"}


def test_generate_without_a_prompt_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["generate"]) == 2
    assert capsys.readouterr().err.startswith("ernie45: error: prompt (nothing given)")


def test_a_dialogue(answers, llm, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("L", (56, 28), 200).save(tmp_path / "my picture.png")
    answers("hello", "/thinking off", f"/image '{tmp_path / 'my picture.png'}'", "what?", "again", "/exit", "never read")
    out = capsys.readouterr().out
    assert "thinking: 3 and 4\n7\n(" in out
    assert "thinking is off" in out
    assert "my picture.png, 56 x 28: goes with your next question" in out
    assert [len(inputs.media) for inputs, _ in llm.asked] == [0, 1, 1]  # the second stays in the history
    assert "never" not in out


def test_errors_do_not_end_a_dialogue(answers, llm, capsys: pytest.CaptureFixture[str]) -> None:
    answers("/imagge x", "/image /nowhere.png", "/image", "/thinking maybe", "hello")
    out = capsys.readouterr().out
    assert "/imagge is not a command; did you mean /image?" in out
    assert "error: image" in out
    assert "which picture? /image FILE" in out
    assert "('maybe') must be on or off" in out
    assert len(llm.asked) == 1


def test_ctrl_c_stops_an_answer_and_the_dialogue_goes_on(
    answers, llm, conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = llm.stream

    def interrupted(*arguments, **options):
        yield next(whole(*arguments, **options))
        monkeypatch.setattr(llm, "stream", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm, "stream", interrupted)
    answers("first", "second")
    out = capsys.readouterr().out
    assert "(stopped; this question is forgotten)" in out
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_the_thought_is_dim_and_control_characters_are_left_out() -> None:
    out = io.StringIO()
    deltas = [Delta("reasoning", "hm\x1b[31m"), Delta("content", "7\n\x07")]
    show_answer(deltas, Terminal(colours="256", is_tty=True), out, out)
    assert out.getvalue() == "\x1b[2mthinking: hm[31m\x1b[0m\n7\n\n"


def test_dim_is_switched_off_when_the_thought_is_cut() -> None:
    def cut() -> Iterator[Delta]:
        yield Delta("reasoning", "hm")
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        show_answer(cut(), Terminal(colours="truecolor", is_tty=True), out, out)
    assert out.getvalue() == "\x1b[2mthinking: hm\x1b[0m\n\n"
