"""The `rlvr` and `upo` stages: prompts, pairs, engine, rewards, forward and objective put together.

Knows nothing about folders, processes or the command line.
"""

import copy
import functools
from dataclasses import replace
from typing import Any

import torch

from ernie45.config.policy import PairTermConfig, RLVRConfig, RolloutConfig, UPOConfig
from ernie45.model.multimodal import ErnieModel
from ernie45.recipes.adapters import adapter_writer
from ernie45.recipes.prompts import PolicyData, load_policy_data
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.train.asking import Asker
from ernie45.train.critic import Critic
from ernie45.train.lora import num_parameters, trained_modules
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.policy import PolicyOutputs, policy_loss, value_loss
from ernie45.train.objectives.routing import gradient_only, router_losses
from ernie45.train.objectives.upo import pair_loss
from ernie45.train.policy_batch import PolicyBatch
from ernie45.train.policy_run import PolicyParts, PolicyRun, policy_forward
from ernie45.train.prompts import PromptTable
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.rollout import RolloutEngine
from ernie45.train.stage import Stage


def tiny() -> RLVRConfig:
    """Sums of two to four written digits with thoughts, for the tiny model."""
    return RLVRConfig(rollout=RolloutConfig(context=256))


def tiny_upo() -> UPOConfig:
    """The same sums with pairs of the best and the worst answer, for the tiny model."""
    return UPOConfig(rollout=RolloutConfig(context=256))


def build(context: BuildContext) -> Assembly:
    """The stage on the context's prompts and pairs, or on generated ones if there are none."""
    config: RLVRConfig = context.config
    term = config.pairs if isinstance(config, UPOConfig) else None
    modules = trained_modules(context.model, config.lora, config.router, config.seed)
    if config.policy.advantage == "gae":
        generator = torch.Generator().manual_seed(config.seed)
        modules["critic"] = Critic(context.model.config.hidden_size, config.critic.hidden_size, generator)
    rewards = _reward_system(context)
    data = load_policy_data(context, rewards, term)
    asker = Asker(
        config=config,
        processor=context.processor,
        pool=data.pool,
        table=PromptTable(data.pool.domains, config.prompts, config.seed),
        engine=RolloutEngine(modules, config.rollout, context.processor.stop_token_ids, config.seed),
        rewards=rewards,
        workers=context.workers,
    )
    compares = config.policy.kl_weight > 0 or (term is not None and term.reference == "frozen")
    reference = _reference(context) if compares else None
    parts = PolicyParts(asker=asker, modules=modules, reference=reference, pair_term=term, offline=data.offline)
    return Assembly(
        modules=modules,
        stages=[_stage(parts)],
        write=adapter_writer(context) if config.lora.rank else None,
        describe=describe(config, data) | {"parameters": num_parameters(modules)},
        prepare=asker.start,
        close=asker.close,
    )


def _stage(parts: PolicyParts) -> Stage:
    config, run = parts.config, PolicyRun(parts)
    return Stage(
        name="rlvr" if parts.pair_term is None else "upo",
        schedule=config.schedule,
        batch=run.batch,
        forward=functools.partial(policy_forward, temperature=config.rollout.temperature),
        objective=functools.partial(objective, term=parts.pair_term),
        objective_config=config,
        routers=config.router,
        before_step=run.before_step,
        stateful={"policy": run},
    )


def _reference(context: BuildContext) -> ErnieModel:
    """The model as it begins: a copy, or, where only an adapter learns, the model itself."""
    return context.model if context.config.lora.rank else copy.deepcopy(context.model).requires_grad_(False)


def _reward_system(context: BuildContext) -> RewardSystem:
    """Every process takes all scores; the first one writes down answers that got none."""
    if context.workers.rank == 0:
        return RewardSystem(context.config.rewards, context.folder / "reward-events.jsonl")
    return RewardSystem(replace(context.config.rewards, log_events=0))


def objective(outputs: PolicyOutputs, batch: PolicyBatch, config: RLVRConfig, term: PairTermConfig | None) -> Loss:
    """The policy's loss, the critic's, the pair term's, and those of the routers (gradient only)."""
    loss, metrics = policy_loss(outputs, batch, config.policy)
    if outputs.values_R is not None:
        value = value_loss(outputs, batch, config.critic)
        loss, metrics = loss + value.loss, metrics | value.metrics
    if term is not None:
        pairs = pair_loss(outputs, batch, term)
        loss, metrics = loss + pairs.loss, metrics | pairs.metrics
    loss = gradient_only(loss, router_losses(outputs.routers, config.router, batch.share))
    return Loss(loss, metrics | {"loss": (loss.detach(), batch.share)})


def describe(config: RLVRConfig, data: PolicyData) -> dict[str, Any]:
    """Facts for `--dry-run`."""
    rollout = config.rollout
    facts = {
        "num_steps": config.schedule.num_steps,
        "prompts": len(data.pool),
        "prompts_left_out": data.num_left_out,
        "domains": sorted(set(data.pool.domains)),
        "rollouts": -(-config.schedule.num_steps // rollout.steps),
        "answers_of_a_rollout": rollout.prompts * rollout.updates * rollout.group_size,
    }
    return facts if data.offline is None else facts | {"pairs": len(data.offline.pairs)}
