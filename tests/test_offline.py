"""Text in, text out without a server: the same answers as the engine's, in order, however many and whatever stops them."""

from pathlib import Path
from typing import Any

import pytest

import ernie45
from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, MediaError, RequestError
from ernie45.config.sampling import SamplingParams
from ernie45.offline import LLM

STRIP = next(path for path in sorted((resolve_model("tiny").parent / "samples").iterdir()) if path.suffix == ".png")
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def llm() -> Any:
    llm = LLM("tiny", EngineConfig(max_num_seqs=4, max_model_len=512, dtype="float32"))
    yield llm
    llm.close()


def ask(question: str, *pictures: Path) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_more_questions_than_fit_are_answered_in_order(llm: Any) -> None:
    questions = [f"What is {n}+{n % 7}?" for n in range(40)]
    answers = llm.chat([ask(question) for question in questions], GREEDY, enable_thinking=False)
    assert not llm.engine.has_work
    llm.engine.check_integrity()
    inputs = [llm.processor.encode_chat(ask(question), enable_thinking=False) for question in questions]
    params = SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=llm.processor.stop_token_ids)
    expected = llm.engine.generate(inputs, params)
    assert [answer.token_ids for answer in answers] == [done.token_ids for done in expected]
    assert [answer.finish_reason for answer in answers] == [done.finish_reason for done in expected]
    assert [answer.text for answer in answers] == [llm.processor.tokenizer.decode(done.token_ids) for done in expected]
    assert len({answer.text for answer in answers}) > 5


def test_thoughts_and_answers_are_told_apart(llm: Any) -> None:
    (answer,) = llm.chat(ask("What is 47+12?"), SamplingParams(max_tokens=200, temperature=0.0))
    assert answer.reasoning
    assert "think>" not in answer.reasoning + answer.text
    assert answer.text.strip() == "59"
    assert answer.finish_reason == "stop"
    assert answer.num_tokens == len(answer.token_ids) + 1
    (plain,) = llm.chat(ask("What is 47+12?"), GREEDY, enable_thinking=False)
    assert plain.reasoning == ""


def test_pictures_are_read_once(llm: Any) -> None:
    before = llm.processor.cache.stats().num_misses
    answers = llm.chat([ask("Read the digits.", STRIP)] * 3, GREEDY, enable_thinking=False)
    assert len({answer.text for answer in answers}) == 1
    assert llm.processor.cache.stats().num_misses == before + 1


def test_texts_are_continued(llm: Any) -> None:
    one, other = llm.generate(["What is", "Read"], [GREEDY, SamplingParams(max_tokens=3, temperature=0.0, logprobs=1)])
    assert len(one.token_ids) == one.num_tokens - (one.finish_reason == "stop") > 3
    assert len(other.token_ids) == 3
    assert len(other.logprobs) == 3
    assert one.logprobs is None
    assert llm.generate("What is", GREEDY)[0].token_ids == one.token_ids
    assert llm.generate([]) == []


def test_a_stop_string_ends_an_answer(llm: Any) -> None:
    (whole,) = llm.generate("What is", GREEDY)
    string = whole.text[4:7]
    (cut,) = llm.generate("What is", GREEDY, stop=[string])
    assert cut.text == whole.text[: whole.text.index(string)]
    assert cut.finish_reason == "stop"
    assert not llm.engine.has_work
    llm.engine.check_integrity()


def test_without_params_the_models_own_are_used(llm: Any) -> None:
    (answer,) = llm.chat(ask("What is 3+4?"), enable_thinking=False)
    assert llm.defaults.temperature == 0.0
    assert llm.defaults.max_tokens == 256
    assert answer.finish_reason == "stop"


def test_progress_is_shown_only_if_asked_for(llm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"], GREEDY, progress=True)
    assert "answers" in capsys.readouterr().err


def test_what_cannot_be_is_named_and_leaves_nothing_behind(llm: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"prompt 2: messages\[0\].role"):
        llm.chat([ask("a"), ask("b"), [{"role": "nobody", "content": "c"}]], GREEDY)
    with pytest.raises(MediaError, match="prompt 0: .*is not a file|prompt 0: .*cannot be read"):
        llm.chat(ask("x", tmp_path / "none.png"), GREEDY)
    with pytest.raises(RequestError, match=r"params \(1\) must be one for all"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(RequestError, match="prompt 0: "):
        llm.generate("x " * 600, GREEDY)
    assert not llm.engine.has_work
    llm.engine.check_integrity()
    with pytest.raises(ConfigError, match="video_fsp"):
        LLM("tiny", mm_processor_kwargs={"video_fsp": 1})


def test_a_bad_prompt_stops_nothing_if_asked(llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "on_error", "return")
    bad = [{"role": "nobody", "content": "c"}]
    none, fine, missing, long = llm.chat(
        [bad, ask("What is 3+4?"), ask("x", tmp_path / "none.png"), ask("x " * 600)], GREEDY, enable_thinking=False
    )
    assert (fine.error, fine.text) == (None, llm.chat(ask("What is 3+4?"), GREEDY, enable_thinking=False)[0].text)
    assert [type(one.error) for one in (none, missing, long)] == [RequestError, MediaError, RequestError]
    assert "messages[0].role" in str(none.error)
    assert {one.finish_reason for one in (none, missing, long)} == {"error"}
    assert [one.error is None for one in llm.generate(["x " * 600] * 9, GREEDY)] == [False] * 9
    assert not llm.engine.has_work
    with pytest.raises(ConfigError, match="on_error"):
        LLM("tiny", on_error="ignore")  # type: ignore[arg-type]


def test_an_answer_comes_in_pieces(llm: Any) -> None:
    params = SamplingParams(max_tokens=60, temperature=0.0)
    [whole] = llm.chat(ask("What is 47+12?"), params)
    stream, deltas = llm.stream(ask("What is 47+12?"), params), []
    while True:
        try:
            deltas.append(next(stream))
        except StopIteration as end:
            assert (end.value.text, end.value.token_ids) == (whole.text, whole.token_ids)
            break
    assert len(deltas) >= whole.num_tokens - 1
    texts = {part: "".join(text for step in deltas for name, text in step if name == part) for part in ("reasoning", "content")}
    assert (texts["reasoning"].strip("\n"), texts["content"]) == (whole.reasoning, whole.text)
    stream = llm.stream(ask("What is 47+12?"), params)
    next(stream)
    stream.close()
    assert not llm.engine.has_work
    llm.engine.check_integrity()


def test_the_name_in_the_package() -> None:
    assert ernie45.LLM is LLM
    with pytest.raises(AttributeError, match="nothing"):
        ernie45.nothing  # noqa: B018


def test_what_programs_need_is_in_the_package() -> None:
    assert {getattr(ernie45, name) for name in ernie45.__all__} >= {LLM, EngineConfig, SamplingParams}
