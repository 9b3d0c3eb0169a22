"""Log-probabilities, thinking budgets, grammars and penalties through the whole engine: chunked, preempted, batched, cached."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.sampling import Grammar, SamplingParams, ThinkingBudget, TokenLogprob
from ernie45.engine.llm import LLM
from ernie45.engine.request import Completion, Request
from ernie45.model.batch import pack
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor

MakeInput = Callable[..., ModelInput]
IMAGE = ("image", (1, 6, 8), 1)
PROMPTS = [[13], [4, IMAGE, 5], [1], [9, IMAGE, 2]]
END = 40  # of a thought
BUDGET = ThinkingBudget(max_tokens=5, end_token_ids=(30, 31, END))
# Little room: requests wait, are cut in chunks and give their pages to older ones.
TIGHT = {"max_num_batched_tokens": 6, "max_num_seqs": 4, "num_pages": 14}


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> ErnieModel:
    model = ErnieModel(config)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():  # so that answers are varied
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="module")
def prompts(make_input: MakeInput) -> list[ModelInput]:
    return [make_input(parts, seed=seed) for seed, parts in enumerate(PROMPTS)]


def make_llm(model: ErnieModel, **options) -> LLM:
    return LLM(model, EngineConfig(**{"page_size": 4, "num_pages": 128, **options}))


def run_tight(model: ErnieModel, prompts: Sequence[ModelInput], params: Sequence[SamplingParams]) -> list[Completion]:
    llm = make_llm(model, **TIGHT)
    completions = llm.generate(prompts, params)
    assert llm.stats().num_preemptions > 0, "the test would show nothing"
    llm.check_integrity()
    return completions


@torch.no_grad()
def whole_logprobs(model: ErnieModel, inputs: ModelInput, answer: Sequence[int]) -> torch.Tensor:
    """Of the whole sequence in one forward, float64 [T, V]."""
    new = np.arange(inputs.next_position, inputs.next_position + len(answer))
    sequence = replace(
        inputs,
        token_ids=np.concatenate([inputs.token_ids, np.array(answer, dtype=np.int64)]),
        is_vision=np.concatenate([inputs.is_vision, np.zeros(len(answer), dtype=bool)]),
        positions=np.concatenate([inputs.positions, np.repeat(new[:, None], 3, axis=1)]),
    )
    return model.logits(model(pack([sequence])).hidden_TD).double().log_softmax(-1)


def check_entry(entry: TokenLogprob | None, token_id: int, expected_V: torch.Tensor, num_top: int) -> None:
    assert entry is not None
    assert entry.token_id == token_id
    assert entry.logprob == pytest.approx(expected_V[token_id].item(), abs=1e-4)
    assert abs((expected_V > expected_V[token_id]).sum().item() + 1 - entry.rank) <= 1
    assert len(entry.top) == num_top
    for (top_id, value), best in zip(entry.top, expected_V.topk(num_top).values.tolist(), strict=True):
        assert value == pytest.approx(best, abs=1e-4)
        assert value == pytest.approx(expected_V[top_id].item(), abs=1e-4)


def check_logprobs(model: ErnieModel, inputs: ModelInput, completion: Completion) -> None:
    expected_TV = whole_logprobs(model, inputs, completion.token_ids)
    num_prompt = len(inputs)
    assert completion.logprobs is not None
    assert completion.prompt_logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    for place, (token_id, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        check_entry(entry, token_id, expected_TV[num_prompt + place - 1], 3)
    assert len(completion.prompt_logprobs) == num_prompt
    assert completion.prompt_logprobs[0] is None
    for place in range(1, num_prompt):
        check_entry(completion.prompt_logprobs[place], int(inputs.token_ids[place]), expected_TV[place - 1], 2)


@pytest.mark.parametrize("options", [{}, TIGHT], ids=["roomy", "tight"])
def test_logprobs_are_those_of_a_whole_forward(model: ErnieModel, prompts: list[ModelInput], options: dict):
    params = SamplingParams(
        max_tokens=14, temperature=1.5, top_p=0.9, seed=3, frequency_penalty=1.0, logprobs=3, prompt_logprobs=2
    )
    llm = make_llm(model, **options)
    many = [*prompts, *prompts]
    completions = llm.generate(many, params)
    assert (llm.stats().num_preemptions > 0) == bool(options)
    for inputs, completion in zip(many, completions, strict=True):
        check_logprobs(model, inputs, completion)
    without = make_llm(model).generate(many, replace(params, logprobs=None, prompt_logprobs=None))
    assert [completion.token_ids for completion in completions] == [completion.token_ids for completion in without]
    assert all(completion.logprobs is None and completion.prompt_logprobs is None for completion in without)


def test_a_prompt_that_is_cached_is_computed_again_for_its_logprobs(model: ErnieModel, prompts: list[ModelInput]):
    llm = make_llm(model)
    (first,) = llm.generate(prompts[:1], SamplingParams(max_tokens=2, temperature=0))
    asking = SamplingParams(max_tokens=2, temperature=0, logprobs=3, prompt_logprobs=2)
    (second,) = llm.generate(prompts[:1], asking)
    assert second.num_cached_tokens == 0
    check_logprobs(model, prompts[0], second)
    assert second.token_ids == first.token_ids
    (third,) = llm.generate(prompts[:1], SamplingParams(max_tokens=2))
    assert third.num_cached_tokens > 0


def test_events_carry_logprobs_with_their_tokens(model: ErnieModel, prompts: list[ModelInput]):
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=0, prompt_logprobs=0)
    (completion,) = make_llm(model).generate(prompts[:1], params)
    stop = completion.token_ids[3]
    events = list(make_llm(model).stream(prompts[0], replace(params, stop_token_ids=(stop,))))
    assert [event.prompt_logprobs is not None for event in events] == [True] + [False] * (len(events) - 1)
    assert [tuple(entry.token_id for entry in event.logprobs or ()) for event in events] == [
        event.token_ids for event in events
    ]
    assert events[-1].stop_token_id == stop
    assert events[-1].logprobs == ()


def test_more_logprobs_than_allowed_are_refused(model: ErnieModel, prompts: list[ModelInput]):
    llm = make_llm(model, max_logprobs=2)
    with pytest.raises(RequestError, match=r"logprobs \(3\) must be at most 2"):
        llm.generate(prompts[:1], SamplingParams(logprobs=3))
    llm.generate(prompts[:1], SamplingParams(logprobs=2, max_tokens=1))


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_thought_over_its_budget_is_closed(model: ErnieModel, prompts: list[ModelInput], temperature: float):
    """END is biased away, so no thought ends by itself; after the forced end the answer goes on as it would anyway."""
    params = SamplingParams(
        max_tokens=20,
        temperature=temperature,
        seed=5,
        repetition_penalty=1.3,
        presence_penalty=2.0,
        bad_words=((30,), (31, END)),
        logit_bias=((END, -100.0),),
        thinking=BUDGET,
    )
    free = make_llm(model).generate(prompts, replace(params, thinking=None))
    closed = make_llm(model).generate(prompts, params)
    for one, other in zip(free, closed, strict=True):
        assert other.token_ids[:5] == one.token_ids[:5]
        assert other.token_ids[5:8] == BUDGET.end_token_ids
        assert len(other.token_ids) == 20
        assert END not in other.token_ids[8:]
    many = [*prompts, *prompts]
    tight = run_tight(model, many, [params] * len(many))
    assert [completion.token_ids for completion in tight] == 2 * [completion.token_ids for completion in closed]


def test_a_thought_that_ends_by_itself_is_left_alone(model: ErnieModel, prompts: list[ModelInput]):
    params = SamplingParams(max_tokens=14, temperature=0, logit_bias=((END, 100.0),), min_tokens=3, stop_token_ids=(END + 1,))
    for completion in make_llm(model).generate(prompts, replace(params, thinking=BUDGET)):
        assert completion.token_ids == (END,) * 14


def test_a_stop_in_an_open_thought_is_the_models_choice(model: ErnieModel, prompts: list[ModelInput]):
    params = SamplingParams(max_tokens=14, temperature=0, logit_bias=((50, 100.0),), stop_token_ids=(50,), thinking=BUDGET)
    (early,) = make_llm(model).generate(prompts[:1], replace(params, min_tokens=2))
    assert (early.finish_reason, len(early.token_ids)) == ("stop", 2)
    (late,) = make_llm(model).generate(prompts[:1], replace(params, min_tokens=10))
    assert late.token_ids[5:8] == BUDGET.end_token_ids
    assert (late.finish_reason, len(late.token_ids)) == ("stop", 10)
    (at_once,) = make_llm(model).generate(
        prompts[:1], replace(params, thinking=replace(BUDGET, max_tokens=0), max_tokens=3, min_tokens=0)
    )
    assert at_once.token_ids == BUDGET.end_token_ids


def test_everything_at_once_is_the_same_alone_batched_and_preempted(model: ErnieModel, prompts: list[ModelInput]):
    kinds = [
        SamplingParams(max_tokens=14, temperature=1.3, seed=1, repetition_penalty=1.5, min_p=0.05),
        SamplingParams(max_tokens=14, temperature=1.0, seed=2, frequency_penalty=1.0, top_p=0.8, bad_words=((5,), (6, 7))),
        SamplingParams(max_tokens=14, temperature=0, presence_penalty=1.0, logit_bias=((9, 2.0),)),
        SamplingParams(max_tokens=14, temperature=0.7, seed=4, top_k=20, min_tokens=9, stop_token_ids=tuple(range(3, 40))),
    ]
    many = [*prompts, *prompts]
    params = [kinds[index % 4] for index in range(4)] + [kinds[(index + 1) % 4] for index in range(4)]
    alone = [make_llm(model).generate([one], each)[0] for one, each in zip(many, params, strict=True)]
    together = make_llm(model).generate(many, params)
    tight = run_tight(model, many, params)
    assert [completion.token_ids for completion in together] == [completion.token_ids for completion in alone]
    assert [completion.token_ids for completion in tight] == [completion.token_ids for completion in alone]
    assert all(5 not in completion.token_ids for completion, each in zip(alone, params, strict=True) if each.bad_words)
    assert all(len(completion.token_ids) >= each.min_tokens for completion, each in zip(alone, params, strict=True))


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "word": {"type": "string", "maxLength": 5}, "é": {"enum": ["ä", "小"]}},
    "required": ["sum", "word", "é"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tiny() -> Iterator[tuple[LLM, Processor]]:
    """The shipped model in little room, and its processor."""
    threads = torch.get_num_threads()
    yield (
        LLM.load("tiny", EngineConfig(max_num_batched_tokens=32, max_num_seqs=8, num_pages=24)),
        Processor.from_dir(resolve_model("tiny")),
    )
    torch.set_num_threads(threads)


def ask(processor: Processor, text: str) -> ModelInput:
    return processor.encode_text(text)


def test_random_answers_are_json(tiny: tuple[LLM, Processor]):
    """At a temperature at which the model writes anything; preempted, and each with a seed of its own."""
    llm, processor = tiny
    params = [
        SamplingParams(
            max_tokens=150,
            temperature=20.0,
            seed=seed,
            stop_token_ids=processor.stop_token_ids,
            grammar=Grammar(kind="json_schema", text=json.dumps(SCHEMA)),
            min_tokens=3 * seed,
            frequency_penalty=0.5,
        )
        for seed in range(12)
    ]
    prompts = [ask(processor, f"{seed} and more") for seed in range(12)]
    before = llm.stats().num_preemptions
    completions = llm.generate(prompts, params)
    assert llm.stats().num_preemptions > before
    finished = [completion for completion in completions if completion.finish_reason == "stop"]
    assert len(finished) >= 4
    for completion in finished:
        value = json.loads(processor.tokenizer.decode(completion.token_ids))
        assert list(value) == ["sum", "word", "é"]
        assert value["é"] in ("ä", "小")
        assert len(value["word"]) <= 5
    again = [llm.generate([one], each)[0].token_ids for one, each in zip(prompts[:4], params[:4], strict=True)]
    assert again == [completion.token_ids for completion in completions[:4]]


def test_a_grammar_begins_behind_the_thought_and_ends_the_answer(tiny: tuple[LLM, Processor]):
    llm, processor = tiny
    end = processor.think_end_id
    assert end is not None
    params = SamplingParams(
        max_tokens=60,
        temperature=3.0,
        seed=1,
        stop_token_ids=processor.stop_token_ids,
        grammar=Grammar(kind="regex", text="(yes|no): [a-c]{3}", after=end),
        thinking=ThinkingBudget(max_tokens=7, end_token_ids=(end,)),
        logit_bias=tuple((token_id, -100.0) for token_id in (*processor.stop_token_ids, end)),
        bad_words=tuple((token_id,) for token_id in processor.tokenizer.encode("yesno")),
    )
    for seed in range(6):
        (completion,) = llm.generate([ask(processor, "1 + 1")], replace(params, seed=seed))
        assert completion.token_ids[7] == end
        answer = processor.tokenizer.decode(completion.token_ids[8:])
        assert completion.finish_reason == "stop"
        assert answer[-3:].strip("abc") == ""
        assert answer[:-5] in ("yes", "no")


def test_a_thought_before_a_grammar_cannot_end_the_answer(tiny: tuple[LLM, Processor]):
    """However much the model wants to stop: the answer would be empty, and match nothing."""
    llm, processor = tiny
    end, stop = processor.think_end_id, processor.stop_token_ids
    assert end is not None
    params = SamplingParams(
        max_tokens=40,
        temperature=0,
        stop_token_ids=stop,
        grammar=Grammar(kind="regex", text="[a-c]{3}", after=end),
        thinking=ThinkingBudget(max_tokens=7, end_token_ids=(end,)),
        logit_bias=tuple((token_id, 100.0) for token_id in stop),
    )
    (completion,) = llm.generate([ask(processor, "1 + 1")], params)
    ids = list(completion.token_ids)
    answer = processor.tokenizer.decode(ids[ids.index(end) + 1 :])
    assert (len(answer), answer.strip("abc"), completion.finish_reason) == (3, "", "stop")


def test_an_impossible_grammar_is_refused_and_leaves_nothing_behind(tiny: tuple[LLM, Processor], model: ErnieModel):
    llm, processor = tiny
    params = SamplingParams(stop_token_ids=(2,), grammar=Grammar(kind="json_schema", text="false"))
    with pytest.raises(RequestError, match="Unsatisfiable"):
        llm.generate([ask(processor, "1")], params)
    assert not llm.has_work
    llm.check_integrity()
    with pytest.raises(RequestError, match="model without a tokenizer"):
        make_llm(model).submit(Request(request_id="1", inputs=ask(processor, "1"), params=params))
