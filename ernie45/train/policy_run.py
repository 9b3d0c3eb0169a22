"""The run of a policy stage: rollouts sieved and refilled, what models say of them, and their portions as batches.

Knows nothing about folders, recipes or the loss. Every process holds all episodes; each looks back on its own shards, and what
it found is shared, so that one process and two make the same run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ernie45.config.errors import DataError
from ernie45.config.policy import PairTermConfig, RLVRConfig
from ernie45.data.preference import PairBatches
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.logprobs import linear_logprobs
from ernie45.train.asking import Asker, Asking, gathered, numbers_about
from ernie45.train.dealing import Portions, best_and_worst, deal, set_critic_advantages, set_group_advantages, teaches
from ernie45.train.episode import Episode, Portion
from ernie45.train.lora import with_lora
from ernie45.train.objectives.policy import PolicyOutputs
from ernie45.train.policy_batch import PairPlaces, PolicyBatch, PolicyItem, collate_policy, continued, split_rows


@dataclass(frozen=True, kw_only=True)
class PolicyParts:
    """What a run is made of.

    modules: "model", perhaps "critic" and "lora". reference: the initial model, where one is compared with; beside "lora" that
    is the model itself, without the adapter. pair_term: where pairs are learnt from; offline: pairs made beforehand, by step.
    """

    asker: Asker
    modules: nn.ModuleDict
    reference: ErnieModel | None = None
    pair_term: PairTermConfig | None = None
    offline: PairBatches | None = None

    @property
    def config(self) -> RLVRConfig:
        return self.asker.config


class PolicyRun:
    """`before_step`, `batch` and the state of a stage."""

    def __init__(self, parts: PolicyParts) -> None:
        self.parts, self._config, self._asker = parts, parts.config, parts.asker
        self._portions: Portions = {}
        self._told: dict[str, float] = {}
        self._step = -1

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
        portion = self._portions[step % rollout.steps % rollout.updates, shard]
        places = PairPlaces(portion.pairs, portion.pair_weight, portion.token_weight)
        return collate_policy(self._items(portion), 1 / self._config.loop.num_shards, places)

    def state_dict(self) -> dict[str, Any]:
        """The rollout, unless it is used up; what is known of prompts and rewards."""
        used_up = (self._step + 1) % self._config.rollout.steps == 0
        portions = {} if used_up else self._portions
        return {
            "portions": [[*place, portion.state_dict()] for place, portion in portions.items()],
            "told": dict(self._told),
            "step": self._step,
            "table": self._asker.table.state_dict(),
            "rewards": self._asker.rewards.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._portions = {(update, shard): Portion.from_state(portion) for update, shard, portion in state["portions"]}
        self._told, self._step = dict(state["told"]), state["step"]
        self._asker.table.load_state_dict(state["table"])
        self._asker.rewards.load_state_dict(state["rewards"])

    # ---- a rollout

    def _roll_out(self, step: int, rollout: int) -> None:
        config = self._config
        kept, asked = self._collect(step, rollout)
        if config.policy.advantage != "gae":
            for group in kept:
                set_group_advantages(group, config.policy.advantage)
        rng, term = Random(f"{config.seed}/pairs/{rollout}"), self.parts.pair_term
        online = term is not None and term.source != "offline"
        spare = next(asking.episodes[0] for asking in asked if asking.episodes)
        self._portions = deal(
            kept,
            config,
            Episode(answer=spare.answer, num_tokens=spare.num_tokens, num_labels=spare.num_labels),
            (lambda group: best_and_worst(group, rng)) if online else lambda group: None,
            lambda update: self._given(rollout * config.rollout.updates + update),
        )
        self._look_back()
        if config.policy.advantage == "gae":
            set_critic_advantages(self._portions, config)
        self._told = numbers_about(asked) | {"prompts_kept": float(len(kept))}

    def _collect(self, step: int, rollout: int) -> tuple[list[list[Episode]], list[Asking]]:
        """Groups that teach something, and all that were asked. DataError if no prompt can be asked."""
        prompts = self._config.prompts
        wanted = self._config.rollout.prompts * self._config.rollout.updates
        kept: list[list[Episode]] = []
        asked: list[Asking] = []
        for refill in range(1 + prompts.max_refills):
            taken = [asking.number for asking in asked]
            numbers = self._asker.table.choose(wanted - len(kept), step, (rollout, refill), taken)
            new = self._asker.ask(numbers, rollout)
            asked += new
            groups = [asking.episodes for asking in new if asking.episodes]
            kept += [group for group in groups if teaches(group, prompts.drop_equal, prompts.min_std)]
            if len(kept) >= wanted or not numbers:
                break
        if not any(asking.episodes for asking in asked):
            raise DataError(f"--data: no prompt can be asked; the first: {asked[0].problem if asked else 'none is allowed'}")
        return kept, asked

    def _given(self, step: int) -> list[tuple[Episode, Episode]]:
        """The pairs made beforehand that an update learns from."""
        offline = self.parts.offline
        if offline is None:
            return []
        found = []
        for number in offline.places(step):
            encoded = offline.pairs[number]
            sides = [
                Episode(pair=(number, side), num_tokens=len(labelled.inputs), num_labels=labelled.num_labels)
                for side, labelled in enumerate((encoded.chosen, encoded.rejected))
            ]
            found.append((sides[0], sides[1]))
        return found

    # ---- what models say of it before the first update

    def _look_back(self) -> None:
        """Old and reference log-probabilities and values, each process for its shards, then shared."""
        if not (self._needs_old or self.parts.reference is not None):
            return
        shards = self._asker.workers.shards(self._config.loop.num_shards)
        own = {place: self._seen(portion) for place, portion in self._portions.items() if place[1] in shards}
        for part in gathered(self._asker.workers, own):
            for place, found in part.items():
                for name, arrays in found.items():
                    for episode, array in zip(self._portions[place].episodes, arrays, strict=True):
                        setattr(episode, name, array)

    @property
    def _needs_old(self) -> bool:
        """Before the only update from a rollout the old log-probabilities are those of the update itself."""
        return self._config.rollout.steps > 1 or "critic" in self.parts.modules

    @torch.no_grad()
    def _seen(self, portion: Portion) -> dict[str, list[np.ndarray]]:
        items, temperature = self._items(portion), self._config.rollout.temperature
        batch = collate_policy(items, 1.0)
        found: dict[str, Tensor] = {}
        if self._needs_old:
            outputs = policy_forward(self.parts.modules, batch, temperature)
            found["old_N"] = outputs.logprobs_R
            if outputs.values_R is not None:
                found["values_N"] = outputs.values_R
        if self.parts.reference is not None:
            reference = nn.ModuleDict({"model": self.parts.reference})
            found["reference_N"] = policy_forward(reference, batch, temperature).logprobs_R
        return {name: split_rows(items, values_R) for name, values_R in found.items()}

    def _items(self, portion: Portion) -> Sequence[PolicyItem]:
        return [self._item(episode) for episode in portion.episodes]

    def _item(self, episode: Episode) -> PolicyItem:
        answer = episode.answer
        if answer is None:
            assert self.parts.offline is not None
            number, side = episode.pair
            encoded = self.parts.offline.pairs[number]
            labelled = encoded.rejected if side else encoded.chosen
        else:
            labelled = continued(self._asker.pool[answer.prompt].inputs, answer.token_ids)
        return PolicyItem(
            labelled=labelled,
            weight=episode.weight,
            advantages_N=np.zeros(episode.num_labels) if episode.advantages_N is None else episode.advantages_N,
            engine_N=None if answer is None else answer.logprobs,
            old_N=episode.old_N,
            reference_N=episode.reference_N,
            values_N=episode.values_N,
            returns_N=episode.returns_N,
            experts=None if answer is None else answer.experts,
        )


def policy_forward(modules: Any, batch: PolicyBatch, temperature: float) -> PolicyOutputs:
    """Log-probabilities and entropies of the labels at the sampling temperature, and the critic's values if there is one; with
    the adapter under training, if there is one."""
    model = modules["model"]
    out = model(with_lora(modules, batch.packed))
    hidden_RD = out.hidden_TD.index_select(0, batch.rows_R)
    found = linear_logprobs(hidden_RD, model.head_weight, batch.labels_R, temperature)
    values_R = modules["critic"](hidden_RD.detach()) if "critic" in modules else None
    return PolicyOutputs(found.logprobs_R, found.entropies_R, values_R, out.routers)
