"""From prompts to batches: each rollout is asked, rewarded, sieved, and dealt to the updates and shards that learn from it.

Knows nothing about folders, recipes or the loss. Every process holds every answer; it generates and scores its own share, and
what it holds is then equal on all, so that one process and two make the same run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie45.config.errors import DataError
from ernie45.config.policy import RLVRConfig
from ernie45.data.answers import Graded, Score
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.logprobs import linear_logprobs
from ernie45.processor import Processor
from ernie45.train.episode import Buffer, Episode, Place
from ernie45.train.objectives.advantages import (
    generalised_advantages,
    group_advantages,
    overlong_penalty,
    spread,
    whitened,
)
from ernie45.train.objectives.policy import PolicyOutputs, label_weights
from ernie45.train.policy_batch import PolicyBatch, PolicyItem, collate_policy, continued, split_rows
from ernie45.train.prompts import PromptPool, PromptTable
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.rollout import Answer, RolloutEngine
from ernie45.train.workers import Workers


class Asking(NamedTuple):
    """What came of asking a prompt: its number, its episodes with the words about their rewards; None: it cannot be asked."""

    number: int
    episodes: list[Episode] | None
    graded: list[Graded]
    scores: list[Score]
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyParts:
    """What a run is made of. modules: "model", perhaps "critic". reference: the initial model, where one is compared with."""

    config: RLVRConfig
    modules: nn.ModuleDict
    reference: ErnieModel | None
    processor: Processor
    pool: PromptPool
    rewards: RewardSystem
    workers: Workers
    skips_bad: bool = True

    @property
    def model(self) -> ErnieModel:
        model = self.modules["model"]
        assert isinstance(model, ErnieModel)
        return model


class PolicyRun:
    """`before_step`, `batch` and the state of a stage."""

    def __init__(self, parts: PolicyParts) -> None:
        self.parts, self._config = parts, parts.config
        self.table = PromptTable(parts.pool.domains, self._config.prompts, self._config.seed)
        self.engine = RolloutEngine(parts.model, self._config.rollout, parts.processor.stop_token_ids, self._config.seed)
        self._buffer = Buffer()
        self._told: dict[str, float] = {}
        self._step = -1
        self.problems: dict[int, str] = {}

    # ---- for the loop

    def before_step(self, step: int) -> Mapping[str, float]:
        """A new rollout where the one before is used up; numbers about the present one."""
        self._step = step
        if step % self._config.rollout.steps == 0:
            self._roll_out(step, step // self._config.rollout.steps)
        return self._told

    def batch(self, step: int, shard: int) -> PolicyBatch:
        """The shard of an update of the present rollout."""
        rollout = self._config.rollout
        episodes = self._buffer.episodes[step % rollout.steps % rollout.updates, shard]
        return collate_policy([self._item(episode) for episode in episodes], 1 / self._config.loop.num_shards)

    def state_dict(self) -> dict[str, Any]:
        """The rollout, unless it is used up; what is known of prompts and rewards."""
        used_up = (self._step + 1) % self._config.rollout.steps == 0
        return {
            "buffer": [] if used_up else self._buffer.state_dict(),
            "told": dict(self._told),
            "step": self._step,
            "table": self.table.state_dict(),
            "rewards": self.parts.rewards.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._buffer = Buffer.from_state(state["buffer"])
        self._told, self._step = dict(state["told"]), state["step"]
        self.table.load_state_dict(state["table"])
        self.parts.rewards.load_state_dict(state["rewards"])

    # ---- a rollout

    def _roll_out(self, step: int, rollout: int) -> None:
        kept, spare, told = self._collect(step, rollout)
        self._set_advantages(kept)
        self._buffer = self._deal(kept, spare)
        self._look_back()
        for update in range(self._config.rollout.updates):
            self._weigh([item for (of, _), items in self._buffer.episodes.items() if of == update for item in items])
        self._told = told

    def _collect(self, step: int, rollout: int) -> tuple[list[list[Episode]], Episode, dict[str, float]]:
        """Groups that teach something, any episode, and numbers about all that were asked."""
        config = self._config
        wanted = config.rollout.prompts * config.rollout.updates
        kept: list[list[Episode]] = []
        asked: list[Asking] = []
        taken: list[int] = []
        for refill in range(1 + config.prompts.max_refills):
            numbers = self.table.choose(wanted - len(kept), step, (rollout, refill), taken)
            taken += numbers
            new = self._ask(numbers, rollout)
            asked += new
            kept += [asking.episodes for asking in new if asking.episodes is not None and self._teaches(asking.episodes)]
            if len(kept) >= wanted or not numbers:
                break
        answered = [asking for asking in asked if asking.episodes is not None]
        if not answered:
            raise DataError(f"--data: no prompt can be asked; the first: {asked[0].problem if asked else 'none is allowed'}")
        assert answered[0].episodes is not None
        return kept, answered[0].episodes[0], self._numbers(answered, len(kept), len(asked) - len(answered))

    def _ask(self, numbers: Sequence[int], rollout: int) -> list[Asking]:
        """Prompts answered and rewarded, on all processes. Each of `num_shards` parts is one call of the engine."""
        num_shards = self._config.loop.num_shards
        own = {shard: self._answered(numbers[shard::num_shards], rollout) for shard in self.parts.workers.shards(num_shards)}
        by_number = {
            asking.number: asking for part in _gathered(self.parts.workers, own) for found in part.values() for asking in found
        }
        found = [by_number[number] for number in numbers]
        self._reward(found)
        return found

    def _answered(self, numbers: Sequence[int], rollout: int) -> list[Asking]:
        """One call of the engine, and of the judges for what it wrote."""
        inputs, found = [], {}
        for number in numbers:
            try:
                asked = self.parts.pool[number]
                self._check_length(number, len(asked.inputs))
                inputs.append((number, asked.inputs))
            except DataError as error:
                if not self.parts.skips_bad:
                    raise
                found[number] = Asking(number, None, [], [], str(error))
        for (number, item), answers in zip(inputs, self.engine.generate(inputs, rollout), strict=True):
            episodes = [Episode(answer=answer, num_prompt_tokens=len(item)) for answer in answers]
            graded = [self._graded(answer) for answer in answers]
            found[number] = Asking(number, episodes, graded, [])
        flat = [item for asking in found.values() for item in asking.graded]
        scores = iter(self.parts.rewards.grade(flat))
        return [asking._replace(scores=[next(scores) for _ in asking.graded]) for asking in found.values()]

    def _check_length(self, number: int, num_tokens: int) -> None:
        longest = self.engine.max_model_len
        if num_tokens + 1 > longest:
            origin = self.parts.pool[number].prompt.origin
            raise DataError(f"{origin}: prompt ({num_tokens} tokens) leaves no room in {longest}; raise rollout.context")

    def _graded(self, answer: Answer) -> Graded:
        prompt, processor = self.parts.pool[answer.prompt].prompt, self.parts.processor
        visible = answer.token_ids[:-1] if answer.finished else answer.token_ids
        return Graded.from_output(
            processor.tokenizer.decode(visible.tolist()),
            self._config.rollout.thinking == "on",
            messages=prompt.messages,
            reference=prompt.answer,
            domain=prompt.domain,
            extra=prompt.extra,
            num_tokens=len(answer.token_ids),
            finished=answer.finished,
        )

    def _reward(self, asked: Sequence[Asking]) -> None:
        """Set the rewards of all, normalised together, and tell the table how hard the prompts were."""
        config, system = self._config, self.parts.rewards
        rewards = system.take([item for asking in asked for item in asking.graded], [s for a in asked for s in a.scores])
        values = iter(zip(system.normalise(rewards), rewards.values, rewards.mask, strict=True))
        for asking in asked:
            if asking.episodes is None:
                self.problems[asking.number] = asking.problem
                self.table.observe(asking.number, None)
                continue
            raw = []
            for episode in asking.episodes:
                normalised, value, known = next(values)
                if known:
                    raw.append(min(max(value, 0.0), 1.0))
                    episode.reward = normalised
                    if config.policy.cut == "shape":
                        episode.reward -= overlong_penalty(len(episode), config.rollout.max_tokens, config.policy.cut_tokens)
            self.table.observe(asking.number, float(np.mean(raw)) if raw else None)

    def _teaches(self, episodes: Sequence[Episode]) -> bool:
        """Whether a group stays: its rewards differ, by more than `min_std`, where that is asked for."""
        rewards = np.array([episode.reward for episode in episodes])
        if np.isnan(rewards).all():
            return False
        differs, config = spread(rewards), self._config.prompts
        return (differs > 0 or not config.drop_equal) and (differs > config.min_std or not config.min_std)

    def _set_advantages(self, groups: Sequence[Sequence[Episode]]) -> None:
        kind = self._config.policy.advantage
        for group in groups:
            if kind == "gae":
                continue  # once the critic has been asked
            rewards = np.array([episode.reward for episode in group])
            for episode, advantage in zip(group, group_advantages(rewards, kind), strict=True):
                episode.advantages_N = np.full(len(episode), advantage, dtype=np.float32)

    def _deal(self, groups: Sequence[list[Episode]], spare: Episode) -> Buffer:
        """Groups in turn to updates, and whole to the shard that has fewest tokens. An empty shard gets an episode that counts
        nothing: every process runs every part of the model in every step."""
        num_updates, num_shards = self._config.rollout.updates, self._config.loop.num_shards
        episodes: dict[Place, list[Episode]] = {}
        for update, numbers in enumerate(np.array_split(np.arange(len(groups)), num_updates)):
            shards: list[list[Episode]] = [[] for _ in range(num_shards)]
            own = [[item for item in groups[number] if self._counts(item)] for number in numbers]
            for group in sorted(own, key=_num_tokens, reverse=True):
                min(shards, key=_num_tokens).extend(group)
            for shard, items in enumerate(shards):
                episodes[update, shard] = items or [Episode(answer=spare.answer, num_prompt_tokens=spare.num_prompt_tokens)]
        return Buffer(episodes)

    def _counts(self, episode: Episode) -> bool:
        """Whether an episode is learnt from: it has a reward, and is not cut off where such are masked."""
        return not np.isnan(episode.reward) and (episode.answer.finished or self._config.policy.cut != "mask")

    def _weigh(self, episodes: Sequence[Episode]) -> None:
        """What a label of each counts in the loss of its update."""
        counted = [episode for episode in episodes if not np.isnan(episode.reward)]
        weights = label_weights(list(map(len, counted)), self._config.policy.normalise, self._config.rollout.max_tokens)
        for episode, weight in zip(counted, weights, strict=True):
            episode.weight = weight

    # ---- what models say of it before the first update

    def _look_back(self) -> None:
        """Old and reference log-probabilities and values, each process for its shards, then shared."""
        config = self._config
        needs_old, critic = config.rollout.steps > 1, "critic" in self.parts.modules
        if needs_old or critic or self.parts.reference is not None:
            shards = self.parts.workers.shards(config.loop.num_shards)
            own = {place: self._seen(items) for place, items in self._buffer.episodes.items() if place[1] in shards}
            for part in _gathered(self.parts.workers, own):
                for place, found in part.items():
                    for name, arrays in found.items():
                        for episode, array in zip(self._buffer.episodes[place], arrays, strict=True):
                            setattr(episode, name, array)
        if critic:
            self._ask_critic()

    @torch.no_grad()
    def _seen(self, episodes: Sequence[Episode]) -> dict[str, list[np.ndarray]]:
        items = [self._item(episode) for episode in episodes]
        batch = collate_policy(items, 1.0)
        found: dict[str, Tensor] = {}
        if self._config.rollout.steps > 1 or "critic" in self.parts.modules:
            outputs = policy_forward(self.parts.modules, batch, self._config.rollout.temperature)
            found["old_N"] = outputs.logprobs_R
            if outputs.values_R is not None:
                found["values_N"] = outputs.values_R
        if self.parts.reference is not None:
            only = nn.ModuleDict({"model": self.parts.reference})
            found["reference_N"] = policy_forward(only, batch, self._config.rollout.temperature).logprobs_R
        return {name: split_rows(items, values_R) for name, values_R in found.items()}

    def _ask_critic(self) -> None:
        """Advantages and returns from the critic's values; whitened by update."""
        config = self._config
        for update in range(config.rollout.updates):
            episodes = [
                item
                for (of, _), items in self._buffer.episodes.items()
                for item in items
                if of == update and not np.isnan(item.reward)
            ]
            for episode in episodes:
                assert episode.values_N is not None
                rewards_N = np.zeros(len(episode))
                rewards_N[-1] = episode.reward
                advantages_N = generalised_advantages(rewards_N, episode.values_N, config.critic.gamma, config.critic.lam)
                episode.returns_N = (advantages_N + episode.values_N).astype(np.float32)
                episode.advantages_N = advantages_N
            if config.policy.whiten:
                parts = whitened([episode.advantages_N for episode in episodes if episode.advantages_N is not None])
                for episode, part in zip(episodes, parts, strict=True):
                    episode.advantages_N = part

    def _item(self, episode: Episode) -> PolicyItem:
        answer = episode.answer
        return PolicyItem(
            labelled=continued(self.parts.pool[answer.prompt].inputs, answer.token_ids),
            weight=episode.weight,
            advantages_N=np.zeros(len(answer.token_ids)) if episode.advantages_N is None else episode.advantages_N,
            engine_N=answer.logprobs,
            old_N=episode.old_N,
            reference_N=episode.reference_N,
            values_N=episode.values_N,
            returns_N=episode.returns_N,
            experts=answer.experts,
        )

    def _numbers(self, asked: Sequence[Asking], num_kept: int, num_bad: int) -> dict[str, float]:
        """About a rollout, for the log."""
        groups = [asking.episodes for asking in asked if asking.episodes is not None]
        flat = [episode for group in groups for episode in group]
        shares = [[score.value for score in asking.scores if score.value is not None] for asking in asked]
        known = [value for share in shares for value in share]
        return {
            "accuracy": float(np.mean(known)) if known else 0.0,
            "rewards_missing": 1 - len(known) / len(flat),
            "all_right": sum(bool(share) and min(share) >= 1 for share in shares) / len(groups),
            "all_wrong": sum(bool(share) and max(share) <= 0 for share in shares) / len(groups),
            "prompts_asked": float(len(groups)),
            "prompts_kept": float(num_kept),
            "prompts_bad": float(num_bad),
            "answer_tokens": float(np.mean([len(episode) for episode in flat])),
            "cut_off": float(np.mean([not episode.answer.finished for episode in flat])),
            "prefix_hits": self.engine.hit_share(),
        }


def policy_forward(modules: Any, batch: PolicyBatch, temperature: float) -> PolicyOutputs:
    """Log-probabilities and entropies of the labels at the sampling temperature, and the critic's values if there is one."""
    model = modules["model"]
    out = model(batch.packed)
    hidden_RD = out.hidden_TD.index_select(0, batch.rows_R)
    found = linear_logprobs(hidden_RD, model.head_weight, batch.labels_R, temperature)
    values_R = modules["critic"](hidden_RD.detach()) if "critic" in modules else None
    return PolicyOutputs(found.logprobs_R, found.entropies_R, values_R, out.routers)


def _num_tokens(episodes: Iterable[Episode]) -> int:
    return sum(episode.num_prompt_tokens + len(episode) for episode in episodes)


def _gathered(workers: Workers, item: Any) -> list[Any]:
    """One object of each process, on all of them."""
    if workers.num_processes == 1:
        return [item]
    found: list[Any] = [None] * workers.num_processes
    dist.all_gather_object(found, item)
    return found
