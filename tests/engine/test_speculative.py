"""Speculation changes no token: every answer equals the one without it, greedy or drawn (when it pays: test_draft_policy)."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig, SpecialTokens
from ernie45.config.sampling import SamplingParams, ThinkingBudget
from ernie45.config.speculation import SpeculationConfig
from ernie45.engine.llm import LLM
from ernie45.engine.mtp import MTPProposer
from ernie45.engine.request import Request
from ernie45.engine.speculative import StepCost
from ernie45.model.batch import pack
from ernie45.model.decoder import MTPModule
from ernie45.model.multimodal import ErnieModel
from ernie45.ops import native
from tests.small_model import pools, small_config

TEXT = small_config(
    expert_pools=pools(text=24),
    vision=None, vocab_size=24, tokens=SpecialTokens(), num_mtp_layers=1, tie_word_embeddings=False,
    max_position_embeddings=256,
)  # fmt: skip
GREEDY = SamplingParams(max_tokens=40, temperature=0)


@pytest.fixture(scope="module")
def model() -> ErnieModel:
    """A model whose prediction module is often right: both are mostly a function of the newest token."""
    model = ErnieModel(TEXT)
    model.init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down" in name:
                parameter.mul_(0.06)
        module, head = model.mtp[0], model.lm_head
        assert isinstance(module, MTPModule)
        assert head is not None
        head.weight.mul_(6)
        module.linear_proj.weight.mul_(0.1)
        module.linear_proj.weight[:, :32] += torch.eye(32) * model.embed_tokens.weight.square().mean().sqrt()
    return model


def text(token_ids: Sequence[int]) -> ModelInput:
    places = np.arange(len(token_ids))
    return ModelInput(
        token_ids=np.array(token_ids, np.int64),
        is_vision=np.zeros(len(token_ids), bool),
        positions=np.repeat(places[:, None], 3, axis=1),
        patches=np.zeros((0, 12), np.uint8),
        next_position=len(token_ids),
    )


def prompt(seed: int, length: int = 12) -> ModelInput:
    return text(np.random.default_rng(seed).integers(0, 24, length).tolist())


def engine(model: ErnieModel, method: str, **changes: Any) -> LLM:
    names = ("num_draft_tokens", "min_ngram")
    speculation = SpeculationConfig(method=method, **{name: changes.pop(name) for name in names if name in changes})  # pyright: ignore
    settings: dict[str, Any] = {"page_size": 4, "num_pages": 256} | changes
    return LLM(model, EngineConfig(speculation=speculation, **settings))


def run(llm: LLM, inputs: Sequence[ModelInput], params: Sequence[SamplingParams]) -> list[Request]:
    requests = [
        Request(request_id=str(index), inputs=item, params=item_params)
        for index, (item, item_params) in enumerate(zip(inputs, params, strict=True))
    ]
    for request in requests:
        llm.submit(request)
    told: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while llm.has_work:
        for event in llm.step():
            told[event.request_id] += event.token_ids
            assert event.logprobs is None or len(event.logprobs) == len(event.token_ids)
        llm.check_integrity()
    assert all(tuple(told[request.request_id]) == request.output_token_ids for request in requests)
    assert llm.stats().num_free_pages == llm.stats().num_pages
    return requests


def answers(requests: Sequence[Request]) -> list[Any]:
    return [(request.output_token_ids, request.finish_reason, request.stop_token_id) for request in requests]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses cost nothing, so that there are always as many as allowed, whatever the clock says."""
    monkeypatch.setattr(StepCost, "share", lambda self, num_rows: 0.0)


METHODS = pytest.mark.parametrize("method", ["ngram", "mtp"])
SCHEDULES = {
    "one": {"max_num_seqs": 1},
    "together": {},
    "small budget": {"max_num_seqs": 4, "max_num_batched_tokens": 10},
    "few pages": {"num_pages": 18},
    "no prefix cache": {"prefix_cache": False},
}


@METHODS
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.usefixtures("eager")
def test_greedy_answers_are_those_without(model: ErnieModel, method: str, schedule: str) -> None:
    inputs, params = [prompt(seed, 5 + 3 * seed) for seed in range(6)], [GREEDY] * 6
    expected = answers(run(engine(model, "none"), inputs, params))
    llm = engine(model, method, **SCHEDULES[schedule])
    assert answers(run(llm, inputs, params)) == expected
    stats = llm.stats()
    assert 0.2 * stats.num_draft_tokens < stats.num_accepted_tokens
    if schedule != "small budget":  # short drafts may all be right
        assert stats.num_accepted_tokens < stats.num_draft_tokens
    if schedule == "few pages":
        assert stats.num_preemptions > 0


@pytest.mark.parametrize("schedule", ["one", "together", "small budget", "few pages"])
@pytest.mark.usefixtures("eager")
def test_the_modules_guesses_are_those_without_a_cache(
    model: ErnieModel, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages hold what they should, over chunks, rejected guesses and preemption (under a shared prefix they may not)."""
    propose, num_checked = MTPProposer.propose, 0

    def checked(self: MTPProposer, wanted: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        nonlocal num_checked
        drafts = propose(self, wanted)
        for (request, _), draft in zip(wanted, drafts, strict=True):
            assert list(draft) == guessed_without_cache(model, list(request.tokens), len(draft))
            num_checked += len(draft)
        return drafts

    monkeypatch.setattr(MTPProposer, "propose", checked)
    llm = engine(model, "mtp", **SCHEDULES[schedule] | {"prefix_cache": False})
    run(llm, [prompt(seed, 5 + 3 * seed) for seed in range(5)], [replace(GREEDY, max_tokens=20)] * 5)
    assert num_checked > 100


@torch.no_grad()
def guessed_without_cache(model: ErnieModel, tokens: list[int], count: int) -> list[int]:
    previous_TD = model(pack([text(tokens[:-1])])).pre_norm_TD
    guesses: list[int] = []
    for _ in range(count):
        known = tokens + guesses
        output = model.predict_ahead(0, torch.tensor(known[1:]), previous_TD, pack([text(known[:-1])]))
        guesses.append(int(model.logits(output.hidden_TD[-1:]).argmax()))
        previous_TD = torch.cat((previous_TD, output.pre_norm_TD[-1:]))
    return guesses


@METHODS
@pytest.mark.usefixtures("eager")
def test_it_saves_steps(model: ErnieModel, method: str) -> None:
    def num_steps(llm: LLM) -> int:
        llm.submit(Request(request_id="one", inputs=prompt(1), params=replace(GREEDY, max_tokens=100)))
        steps = 0
        while llm.has_work:
            llm.step()
            steps += 1
        return steps

    assert num_steps(engine(model, method)) < 0.7 * num_steps(engine(model, "none"))


PARAMS = {
    "temperature": SamplingParams(temperature=1.0),
    "nucleus": SamplingParams(temperature=0.8, top_p=0.8, top_k=12, min_p=0.01),
    "penalties": SamplingParams(temperature=0.9, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
    "greedy with penalties": SamplingParams(temperature=0, repetition_penalty=1.2),
    "bias and bad words": SamplingParams(temperature=1.0, logit_bias=((3, 2.0),), bad_words=((3, 4), (5,))),
    "min_tokens": SamplingParams(temperature=1.0, min_tokens=9, stop_token_ids=(2, 5, 9, 11)),
    "stop ids": SamplingParams(temperature=0, stop_token_ids=(1, 7)),
    "thinking": SamplingParams(temperature=1.0, thinking=ThinkingBudget(max_tokens=7, end_token_ids=(4, 6))),
}


@METHODS
@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.usefixtures("eager")
def test_drawn_answers_are_those_without(model: ErnieModel, method: str, name: str) -> None:
    inputs = [prompt(seed, 4 + seed) for seed in range(8)]
    params = [replace(PARAMS[name], max_tokens=25, seed=seed, logprobs=2) for seed in range(8)]
    plain = run(engine(model, "none"), inputs, params)
    llm = engine(model, method)
    guessed = run(llm, inputs, params)
    assert answers(guessed) == answers(plain)
    for one, other in zip(guessed, plain, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert [entry.token_id for entry in one.logprobs] == [entry.token_id for entry in other.logprobs]
        assert [entry.logprob for entry in one.logprobs] == pytest.approx([entry.logprob for entry in other.logprobs], abs=1e-5)
    assert llm.stats().num_accepted_tokens > 0


@pytest.mark.skipif(native.library("decode") is None, reason="no C++ compiler")
@pytest.mark.usefixtures("eager")
def test_logits_are_the_same_to_the_bit(model: ErnieModel) -> None:
    """A step that checks guesses goes through the kernels of one token a sequence, whose sums depend on nothing beside."""
    params = [replace(GREEDY, logprobs=5)]
    plain, guessed = (run(engine(model, method), [prompt(1)], params)[0] for method in ("none", "ngram"))
    assert plain.logprobs == guessed.logprobs


@METHODS
@pytest.mark.usefixtures("eager")
def test_an_answer_ends_inside_a_draft(model: ErnieModel, method: str) -> None:
    """At a stop id and at max_tokens, wherever in the draft it comes; nothing of the rest is told."""
    whole = run(engine(model, "none"), [prompt(1)], [GREEDY])[0].output_token_ids
    for length in range(1, 20):
        params = [replace(GREEDY, max_tokens=length), replace(GREEDY, stop_token_ids=(whole[length],))]
        by_length, by_stop = run(engine(model, method), [prompt(1)] * 2, params)
        assert by_length.output_token_ids == whole[:length]
        assert by_stop.output_token_ids == whole[: whole.index(whole[length])]
        assert by_stop.finish_reason == "stop"


@hypothesis.settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(["ngram", "mtp"]),
    options=st.fixed_dictionaries({
        "num_draft_tokens": st.integers(1, 9), "max_num_seqs": st.integers(1, 5), "max_num_batched_tokens": st.integers(5, 40),
        "num_pages": st.integers(30, 60), "prefix_cache": st.booleans(),
    }),
    traffic=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.sampled_from([0.0, 1.0]), st.integers(0, 6)),
                     min_size=1, max_size=8),
    aborted=st.integers(0, 12),
)  # fmt: skip
def test_random_traffic(model: ErnieModel, method: str, options: dict, traffic: list, aborted: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepCost, "share", lambda self, num_rows: 0.0)
        go_through(engine(model, method, **options), engine(model, "none"), traffic, aborted)


def go_through(llm: LLM, plain: LLM, traffic: list, aborted: int) -> None:
    """Requests that come while others run, one of which is aborted; each as `plain` answers it alone."""
    found = []
    for index, (length, max_tokens, temperature, wait) in enumerate(traffic):
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=index)
        request = Request(request_id=str(index), inputs=prompt(index % 3, length), params=params)
        llm.submit(request)
        found.append((request, run(plain, [request.inputs], [params])[0]))
        for _ in range(wait):
            llm.step()
            llm.check_integrity()
        if index == aborted:
            llm.abort(str(index))
            llm.check_integrity()
    while llm.has_work:
        llm.step()
        llm.check_integrity()
    for index, (request, expected) in enumerate(found):
        if index != aborted or request.finish_reason is not None:
            assert answers([request]) == answers([expected])


@METHODS
@pytest.mark.usefixtures("eager")
def test_the_distribution_is_that_of_the_model(model: ErnieModel, method: str) -> None:
    """Chi-square of the first three tokens after a fixed prompt over fresh seeds, against their exact probabilities."""
    likely = run(engine(model, "none"), [prompt(1)], [GREEDY])[0]  # so that what the look-up finds is often right
    start = list(likely.tokens)
    with torch.no_grad():
        exact = marginals(model, start, 3)
    llm, num_draws = engine(model, method, max_num_seqs=32, min_ngram=1), 3000
    params = [SamplingParams(max_tokens=3, temperature=1.0) for _ in range(num_draws)]
    requests = run(llm, [text(start)] * num_draws, params)
    assert llm.stats().num_accepted_tokens > 200
    for place, probabilities in enumerate(exact):
        counts = np.bincount([request.output_token_ids[place] for request in requests], minlength=24)
        expected = probabilities * num_draws
        rare = expected < 5  # taken together, as chi-square wants
        observed = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(expected[~rare], expected[rare].sum())
        keep = wanted > 0
        chi2 = float(((observed[keep] - wanted[keep]) ** 2 / wanted[keep]).sum())
        freedom = int(keep.sum()) - 1
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5, (place, chi2, freedom)  # five standard deviations
        # And the test can fail: a greedy choice of the same draws is far outside.
        worst = np.zeros(24)
        worst[probabilities.argmax()] = num_draws
        assert ((worst - expected)[~rare] ** 2 / expected[~rare]).sum() > 10 * freedom


def marginals(model: ErnieModel, start: list[int], num_new: int) -> list[np.ndarray]:
    """Exact probabilities of the first new tokens, by going through all continuations."""
    beams, found = {tuple(start): 1.0}, []
    for _ in range(num_new):
        total, longer = np.zeros(24), {}
        sequences = list(beams)
        for first in range(0, len(sequences), 512):
            part = sequences[first : first + 512]
            batch = pack([text(sequence) for sequence in part])
            last = torch.tensor(batch.cu_seqlens[1:]) - 1
            probabilities = model.logits(model(batch).hidden_TD[last]).double().softmax(-1).numpy()
            for sequence, row in zip(part, probabilities, strict=True):
                total += beams[sequence] * row
                longer.update({(*sequence, token): beams[sequence] * row[token] for token in range(24)})
        found.append(total)
        beams = longer
    return found


def test_pictures(config: ModelConfig, make_input: Callable[..., ModelInput]) -> None:
    """Look-up works for every model; a picture's tokens are looked up like others, and drafts are text."""
    model = ErnieModel(config)
    model.init_weights(torch.Generator().manual_seed(1))
    inputs = [make_input([4, ("image", (1, 6, 8), 1), 5], seed=1), make_input([30], seed=2)]
    expected = answers(run(engine(model, "none"), inputs, [GREEDY] * 2))
    llm = engine(model, "ngram")
    assert answers(run(llm, inputs, [GREEDY] * 2)) == expected
    assert llm.stats().num_accepted_tokens > 0


def test_what_a_model_or_an_engine_cannot_do(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"'mtp'.*use 'ngram'"):
        engine(ErnieModel(config), "mtp")
    with pytest.raises(ConfigError, match=r"'eagle'.*none, ngram, mtp"):
        SpeculationConfig(method="eagle")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="max_ngram"):
        SpeculationConfig(min_ngram=4, max_ngram=3)
    with pytest.raises(ConfigError, match="num_draft_tokens"):
        SpeculationConfig(num_draft_tokens=0)


def test_taking_a_checked_draft() -> None:
    request = Request(request_id="r", inputs=prompt(0, 3), params=SamplingParams(stop_token_ids=(9,)))
    request.draft = (5, 6, 7)
    assert request.take([5, 6, 8, 1]).token_ids == (5, 6, 8)
    assert request.draft == ()
    request.draft = (9, 4)
    event = request.take([9, 4, 4])
    assert (event.token_ids, event.finish_reason, event.stop_token_id) == ((), "stop", 9)
    assert list(request.tokens[3:]) == [5, 6, 8, 9]
    assert isinstance(request.tokens, array)


@METHODS
@pytest.mark.usefixtures("eager")
def test_guesses_delay_no_prompt(model: ErnieModel, method: str) -> None:
    """With guesses enough for the whole budget, a prompt that comes still gets its half of it in every step."""
    llm = engine(model, method, num_draft_tokens=9, max_num_seqs=4, max_num_batched_tokens=16)
    for index in range(3):
        llm.submit(Request(request_id=str(index), inputs=prompt(index), params=replace(GREEDY, max_tokens=150)))
    for _ in range(12):
        llm.step()
    late = Request(request_id="late", inputs=prompt(7, 60), params=GREEDY)
    llm.submit(late)
    before = llm.stats().num_draft_tokens
    for _ in range(12):  # 60 tokens at 6 or more a step, a few less where context makes them dearer
        llm.step()
        llm.check_integrity()
    assert late.num_computed_tokens >= 60
    assert llm.stats().num_draft_tokens > before


@METHODS
@pytest.mark.usefixtures("eager")
def test_a_step_that_fails_costs_no_token(model: ErnieModel, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests begin anew, drafts and what the module had kept are forgotten, and the answers are those without trouble."""
    expected = answers(run(engine(model, "none"), [prompt(0), prompt(1, 30)], [GREEDY] * 2))
    llm = engine(model, method)
    requests = [Request(request_id=str(i), inputs=prompt(i, (12, 30)[i]), params=GREEDY) for i in range(2)]
    for request in requests:
        llm.submit(request)
    model_logits, num_steps, num_failures = ErnieModel.logits, 0, 0

    def failing(self: ErnieModel, *arguments: Any) -> torch.Tensor:
        if num_steps in (4, 9) and num_failures < num_steps // 4:
            raise MemoryError("out of memory")
        return model_logits(self, *arguments)

    monkeypatch.setattr(ErnieModel, "logits", failing)
    while llm.has_work:
        num_steps += 1
        try:
            llm.step()
        except MemoryError:
            num_failures += 1
        llm.check_integrity()
    assert num_failures == 2
    assert answers(requests) == expected
