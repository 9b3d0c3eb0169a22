"""Rollouts on the tiny model: engine and trainer agree, routing is replayed, what fails or is cut does what is configured, and
every part of the model gets its gradient."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ernie45.checkpoint import load_model
from ernie45.config.policy import PolicyConfig, PromptsConfig, RLVRConfig, RolloutConfig
from ernie45.config.rewards import RewardsConfig
from ernie45.config.train import LoopConfig
from ernie45.data.records import Prompt
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.prompts import TinyPrompts
from ernie45.model.moe import experts_by_token
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train.asking import Asker
from ernie45.train.objectives.policy import policy_loss
from ernie45.train.policy_batch import PolicyBatch
from ernie45.train.policy_run import PolicyParts, PolicyRun, policy_forward
from ernie45.train.prompts import Asked, PromptPool, PromptTable
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.rollout import RolloutEngine
from ernie45.train.workers import Workers


@pytest.fixture(scope="module")
def tiny_model() -> ErnieModel:
    return load_model("tiny", dtype=torch.float32)


def run_of(model: ErnieModel, processor: Processor, skills: tuple[str, ...] = ("sum3",), **changes: Any) -> PolicyRun:
    """A run over 32 prompts of these skills. changes: groups of the config, and `rollout` fields by name."""
    groups = {name: changes.pop(name) for name in ("policy", "prompts", "rewards", "loop") if name in changes}
    rollout = RolloutConfig(
        **{
            "prompts": changes.pop("num_prompts", 3),
            "group_size": 4,
            "temperature": 1.5,
            "max_tokens": 40,
            "context": 256,
            **changes,
        }
    )
    config = RLVRConfig(**{"rollout": rollout, "loop": LoopConfig(num_shards=1, processes=1), **groups})
    prompts = TinyPrompts(0, 32, skills, training_digits("fit"))

    def make(number: int) -> Asked:
        prompt = prompts[number]
        return Asked(prompt, processor.encode_chat(prompt.messages, enable_thinking=True))

    modules, pool = nn.ModuleDict({"model": model}), PromptPool(prompts.domains, make)
    asker = Asker(
        config=config,
        processor=processor,
        pool=pool,
        table=PromptTable(pool.domains, config.prompts, 0),
        engine=RolloutEngine(modules, config.rollout, processor.stop_token_ids, 0),
        rewards=RewardSystem(config.rewards),
        workers=Workers(),
    )
    return PolicyRun(PolicyParts(asker=asker, modules=modules))


def gradients(model: ErnieModel, batch: PolicyBatch, config: PolicyConfig | None = None) -> dict[str, float]:
    """Largest gradient of each parameter; a copy of the model gets them."""
    model = copy.deepcopy(model)
    loss = policy_loss(policy_forward(nn.ModuleDict({"model": model}), batch, 1.5), batch, config or PolicyConfig())
    loss.loss.backward()
    return {name: float(p.grad.abs().max()) if p.grad is not None else -1.0 for name, p in model.named_parameters()}


def test_the_trainer_sees_what_the_engine_saw(tiny_model: ErnieModel, processor: Processor):
    run = run_of(tiny_model, processor, ("sum2", "sum4"), replay_routing=True)
    told = run.before_step(0)
    batch = run.batch(0, 0)
    assert told["prefix_hits"] > 0.5
    assert batch.num_sequences > 4
    assert batch.packed.experts_TLA is not None
    outputs = policy_forward(run.parts.modules, replace(batch, packed=replace(batch.packed, experts_TLA=None)), 1.5)
    assert (outputs.logprobs_R - batch.engine_R).abs().max() < 1e-5
    chosen = experts_by_token(outputs.routers, batch.packed)
    assert torch.equal(chosen.sort(-1).values, batch.packed.experts_TLA.sort(-1).values)


def test_bf16_rollouts_differ_until_their_routing_is_replayed(tiny_model: ErnieModel, processor: Processor):
    run = run_of(tiny_model, processor, replay_routing=True, dtype="bfloat16")
    run.before_step(0)
    batch = run.batch(0, 0)
    recorded = batch.packed.experts_TLA
    assert recorded is not None
    free = policy_forward(run.parts.modules, replace(batch, packed=replace(batch.packed, experts_TLA=None)), 1.5)
    own = experts_by_token(free.routers, batch.packed)
    assert not torch.equal(own.sort(-1).values, recorded.sort(-1).values)
    replayed = policy_forward(run.parts.modules, batch, 1.5)
    assert torch.equal(experts_by_token(replayed.routers, batch.packed), recorded)
    metrics = policy_loss(replayed, batch, PolicyConfig(mismatch="mask", mismatch_low=0.999, mismatch_high=1.001)).metrics
    assert 1e-4 < float(metrics["mismatch_max"][0]) < 2
    assert 0 < float(metrics["masked"][0]) < metrics["masked"][1]
    found = gradients(tiny_model, batch)
    routers = [value for name, value in found.items() if "router" in name and "layers.3.mlp.pools.vision" not in name]
    assert min(routers) > 0, "routers learn with their choice given"


def test_pictures_reach_all_vision_parts_and_none_is_no_crash(tiny_model: ErnieModel, processor: Processor):
    run = run_of(tiny_model, processor)
    run.before_step(0)
    found = gradients(tiny_model, run.batch(0, 0))
    last = "layers.3.mlp.pools.vision"  # behind it nothing looks at visual tokens any more
    for part in ("vision_model", "resampler_model", "pools.vision", "pools.text"):
        assert all(value > 0 for name, value in found.items() if part in name and last not in name), part
    run = run_of(tiny_model, processor, ("arithmetic",))
    run.before_step(0)
    batch = run.batch(0, 0)
    assert batch.packed.vision is None
    found = gradients(tiny_model, batch)
    assert all(value == 0 for name, value in found.items() if "pools.vision" in name), "zero rows, zero gradients, not None"


def test_cut_answers_teach_nothing_or_lose_reward(tiny_model: ErnieModel, processor: Processor):
    episodes, short = {}, {"max_tokens": 24, "prompts": PromptsConfig(drop_equal=False)}
    for cut in ("keep", "mask", "shape"):
        run = run_of(tiny_model, processor, ("sum2", "sum3"), policy=PolicyConfig(cut=cut, cut_tokens=4), **short)
        assert 0 < run.before_step(0)["cut_off"] < 1
        episodes[cut] = run._portions[0, 0].episodes
    cut_off = {cut: [not episode.answer.finished for episode in found] for cut, found in episodes.items()}
    assert any(cut_off["keep"])
    assert not any(cut_off["mask"])
    shaped = [episode.reward for episode in episodes["shape"] if not episode.answer.finished]
    assert shaped
    assert all(reward == -1.0 for reward in shaped)
    labels = sum(episode.weight * episode.num_labels for episode in episodes["mask"])
    assert labels == pytest.approx(1.0), "what is left out is no part of the mean"


def test_a_failed_reward_is_masked_and_never_a_zero(
    tiny_model: ErnieModel, processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    from ernie45.data.answers import Score

    run = run_of(tiny_model, processor, rewards=RewardsConfig(max_event_share=1.0))
    judged = RewardSystem.grade

    def every_other_fails(self: RewardSystem, batch: Any) -> list[Score]:
        scores = judged(self, batch)
        return [Score.failed("timeout") if place % 2 else score for place, score in enumerate(scores)]

    monkeypatch.setattr(RewardSystem, "grade", every_other_fails)
    told = run.before_step(0)
    assert told["rewards_missing"] == 0.5
    episodes = run._portions[0, 0].episodes
    assert all(episode.has_reward for episode in episodes if episode.weight)
    monkeypatch.setattr(RewardSystem, "grade", lambda self, batch: [Score.failed("timeout") for _ in batch])
    run = run_of(tiny_model, processor, rewards=RewardsConfig(max_event_share=1.0))
    assert run.before_step(0)["prompts_kept"] == 0
    found = gradients(tiny_model, run.batch(0, 0))
    assert max(found.values()) == 0, "a step without anything to learn is a step without gradient"


def test_groups_of_equal_rewards_are_left_out_and_others_asked(tiny_model: ErnieModel, processor: Processor):
    prompts = PromptsConfig(max_refills=4)
    told = run_of(tiny_model, processor, ("sum2", "sum3"), prompts=prompts, temperature=1.0).before_step(0)
    assert told["prompts_asked"] > 3
    assert told["all_right"] > 0
    run = run_of(tiny_model, processor, ("sum2", "sum3"), prompts=PromptsConfig(drop_equal=False), temperature=1.0)
    assert run.before_step(0)["prompts_asked"] == run.before_step(0)["prompts_kept"] == 3


def test_lessons_and_difficulty_choose_prompts():
    domains = ["easy"] * 50 + ["hard"] * 50
    table = PromptTable(domains, PromptsConfig(curriculum="easy@0, *@10", order="difficulty"), 0)
    first = table.choose(20, 0, (0, 0), [])
    assert len(set(first)) == 20
    assert max(first) < 50
    assert first == table.choose(20, 0, (0, 0), []) != table.choose(20, 0, (1, 0), [])
    for number in range(50):
        table.observe(number, 1.0)
    table.observe(60, 0.5)
    counts = np.bincount([n // 50 for draw in range(40) for n in table.choose(10, 10, (draw, 0), [])], minlength=2)
    assert counts[1] > 5 * counts[0], "what is always right is seldom asked"
    other = PromptTable(domains, PromptsConfig(curriculum="easy@0, *@10", order="difficulty"), 0)
    other.load_state_dict(table.state_dict())
    assert other.choose(9, 12, (3, 1), [1, 2]) == table.choose(9, 12, (3, 1), [1, 2])
    assert table.estimates()[[3, 60, 61]].tolist() == [1.0, 0.5, 0.5]


def test_every_prompt_is_asked_once_before_any_twice():
    table = PromptTable([""] * 10, PromptsConfig(), 0)
    seen: list[int] = []
    for rollout in range(5):
        numbers = table.choose(4, rollout, (rollout, 0), [])
        seen += numbers
        for number in numbers:
            table.observe(number, None)
    assert sorted(seen[:8] + seen[8:10]) == list(range(10))


def test_a_prompt_that_leaves_no_room_is_counted_or_stops(tiny_model: ErnieModel, processor: Processor):
    from ernie45.config.errors import DataError

    run = run_of(tiny_model, processor, context=20)
    with pytest.raises(DataError, match=r"no prompt can be asked.*generated prompt \d+: prompt .* leaves no room in 20"):
        run.before_step(0)
    run = run_of(tiny_model, processor, context=20, prompts=PromptsConfig(on_bad="stop"))
    with pytest.raises(DataError, match=r"generated prompt \d+: prompt"):
        run.before_step(0)
    assert isinstance(run.parts.asker.pool[0].prompt, Prompt)
