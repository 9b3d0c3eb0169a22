"""The `rlvr` stage: prompts, engine, rewards, forward and objective put together.

Knows nothing about folders, processes or the command line.
"""

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ernie45.config.data import DataConfig
from ernie45.config.errors import ConfigError, DataError
from ernie45.config.policy import RLVRConfig, RolloutConfig
from ernie45.data.dataset import Dataset
from ernie45.data.records import Prompt
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.model import tiny_config
from ernie45.data.tiny.prompts import TinyPrompts
from ernie45.recipes.registry import Assembly, BuildContext
from ernie45.train.critic import Critic
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.policy import PolicyOutputs, policy_loss, value_loss
from ernie45.train.objectives.routing import gradient_only, router_losses
from ernie45.train.policy_batch import PolicyBatch
from ernie45.train.policy_run import PolicyParts, PolicyRun, policy_forward
from ernie45.train.prompts import Asked, PromptPool
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.stage import Stage


def tiny() -> RLVRConfig:
    """Sums of two to four written digits with thoughts, for the tiny model."""
    return RLVRConfig(rollout=RolloutConfig(context=256))


def build(context: BuildContext) -> Assembly:
    """The stage on the context's prompts, or on generated ones if there are none."""
    config: RLVRConfig = context.config
    modules = nn.ModuleDict({"model": context.model})
    if config.policy.advantage == "gae":
        generator = torch.Generator().manual_seed(config.seed)
        modules["critic"] = Critic(context.model.config.hidden_size, config.critic.hidden_size, generator)
    rewards = RewardSystem(config.rewards)
    pool = prompt_pool(context, rewards)
    run = PolicyRun(
        PolicyParts(
            config=config,
            modules=modules,
            reference=frozen(context) if config.policy.kl_weight else None,
            processor=context.processor,
            pool=pool,
            rewards=rewards.start(),
            workers=context.workers,
            skips_bad=config.prompts.on_bad == "skip",
        )
    )
    stage = Stage(
        name="rlvr",
        schedule=config.schedule,
        batch=run.batch,
        forward=functools.partial(policy_forward, temperature=config.rollout.temperature),
        objective=objective,
        objective_config=config,
        routers=config.router,
        before_step=run.before_step,
        stateful={"policy": run},
    )
    return Assembly(modules=modules, stages=[stage], describe=describe(config, pool))


def objective(outputs: PolicyOutputs, batch: PolicyBatch, config: RLVRConfig) -> Loss:
    """The policy's loss, the critic's, and those of the routers (gradient only)."""
    loss, metrics = policy_loss(outputs, batch, config.policy)
    if outputs.values_R is not None:
        value, value_metrics = value_loss(outputs, batch, config.critic)
        loss, metrics = loss + value, metrics | value_metrics
    loss = gradient_only(loss, router_losses(outputs.routers, config.router, batch.share))
    return Loss(loss, metrics | {"loss": (loss.detach(), batch.share)})


def describe(config: RLVRConfig, pool: PromptPool) -> dict[str, Any]:
    """Facts for `--dry-run`."""
    rollouts = -(-config.schedule.num_steps // config.rollout.steps)
    answers = config.rollout.prompts * config.rollout.updates * config.rollout.group_size
    return {
        "num_steps": config.schedule.num_steps,
        "prompts": len(pool),
        "domains": sorted(set(pool.domains)),
        "rollouts": rollouts,
        "answers_of_a_rollout": answers,
    }


def frozen(context: BuildContext) -> Any:
    """A copy of the model as it begins: what the KL term compares with."""
    return copy.deepcopy(context.model).requires_grad_(False)


def prompt_pool(context: BuildContext, rewards: RewardSystem) -> PromptPool:
    """All prompts, looked at once. DataError for a bad one, unless they are skipped, and if none is left."""
    config: RLVRConfig = context.config
    found, domains = _read(context, rewards) if context.data else _generated(context)
    longest = min(config.rollout.context or 2**30, context.model.config.max_position_embeddings)
    encoder = RecordEncoder(context.processor, DataConfig(context=longest, token_budget=longest))
    thinking = config.rollout.thinking == "on"

    def make(number: int) -> Asked:
        prompt = found(number)
        return Asked(prompt, encoder.prompt_input(prompt, thinking))

    return PromptPool(domains, make)


def _read(context: BuildContext, rewards: RewardSystem) -> tuple[Callable[[int], Prompt], Sequence[str]]:
    """From the user's files."""
    skips = context.config.prompts.on_bad == "skip"
    data = Dataset(context.data, want=(Prompt,))
    numbers, domains, problems = [], [], []
    for number in range(len(data)):
        try:
            prompt = data[number]
            assert isinstance(prompt, Prompt)
            rewards.check_domain(prompt.domain)
        except DataError as error:
            if not skips:
                raise
            problems.append(str(error))
            continue
        numbers.append(number)
        domains.append(prompt.domain)
    if not numbers:
        raise DataError(f"--data: none of {len(data)} prompts can be used; the first: {problems[0] if problems else 'empty'}")
    if problems and context.workers.rank == 0:
        print(f"note: {len(problems)} of {len(data)} prompts are left out; the first: {problems[0]}", file=sys.stderr)
    return lambda place: replace(data[numbers[place]]), domains  # type: ignore[type-var]


def _generated(context: BuildContext) -> tuple[Callable[[int], Prompt], Sequence[str]]:
    config: RLVRConfig = context.config
    if context.model.config.vocab_size != tiny_config().vocab_size:
        raise ConfigError("--data must be given: the generated prompts are for the tiny model alone; name a file of prompts")
    generated = config.generated
    digits = training_digits("fit" if generated.digits == "fit" else "all")
    prompts = TinyPrompts(config.seed, generated.count, generated.skills, digits)
    return prompts.__getitem__, prompts.domains
