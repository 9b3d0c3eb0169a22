"""Prompts asked on all processes: answered by the engine, judged, rewarded, and noted in the table of prompts.

Knows nothing about advantages, batches or losses. Each process asks its share; what comes back is equal on all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from ernie45.config.errors import DataError
from ernie45.config.policy import RLVRConfig
from ernie45.data.answers import Graded, Score
from ernie45.processor import Processor
from ernie45.train.episode import Episode
from ernie45.train.objectives.advantages import overlong_penalty
from ernie45.train.prompts import PromptPool, PromptTable
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.rollout import Answer, RolloutEngine
from ernie45.train.workers import Workers


class Asking(NamedTuple):
    """What came of asking a prompt: its group of episodes and the judges' words; or a problem, if it cannot be asked."""

    number: int
    episodes: list[Episode]
    graded: list[Graded]
    scores: list[Score]
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks, between `start` and `close`."""

    config: RLVRConfig
    processor: Processor
    pool: PromptPool
    table: PromptTable
    engine: RolloutEngine
    rewards: RewardSystem
    workers: Workers

    def ask(self, numbers: Sequence[int], rollout: int) -> list[Asking]:
        """Groups with rewards, in the order of the prompts. Each of `num_shards` parts is one call of the engine, whoever makes
        it, so the number of processes changes nothing. DataError for a prompt that cannot be asked, unless such are skipped."""
        num_shards = self.config.loop.num_shards
        own = [self._answered(numbers[shard::num_shards], rollout) for shard in self.workers.shards(num_shards)]
        by_number = {asking.number: asking for process in gathered(self.workers, own) for part in process for asking in part}
        found = [by_number[number] for number in numbers]
        self._reward(found)
        return found

    def start(self) -> None:
        """Check the judges before anything is asked. ConfigError: a package lacks, an address is down."""
        self.rewards.start()

    def close(self) -> None:
        """End the judges' processes and the engine's thread."""
        self.rewards.close()
        self.engine.close()

    def _answered(self, numbers: Sequence[int], rollout: int) -> list[Asking]:
        """One call of the engine, and of the judges for what it wrote."""
        inputs, found = [], []
        for number in numbers:
            try:
                asked = self.pool[number]
                self._check_length(asked.prompt.origin, len(asked.inputs))
                inputs.append((number, asked.inputs))
            except DataError as error:
                if self.config.prompts.on_bad == "stop":
                    raise
                found.append(Asking(number, [], [], [], str(error)))
        for (number, item), answers in zip(inputs, self.engine.generate(inputs, rollout), strict=True):
            episodes = [Episode.of(answer, len(item)) for answer in answers]
            found.append(Asking(number, episodes, [self._graded(answer) for answer in answers], []))
        scores = iter(self.rewards.grade([item for asking in found for item in asking.graded]))
        return [asking._replace(scores=[next(scores) for _ in asking.graded]) for asking in found]

    def _check_length(self, origin: str, num_tokens: int) -> None:
        longest = self.engine.max_model_len
        if num_tokens + 1 > longest:
            raise DataError(f"{origin}: prompt ({num_tokens} tokens) leaves no room in {longest}; raise rollout.context")

    def _graded(self, answer: Answer) -> Graded:
        prompt = self.pool[answer.prompt].prompt
        visible = answer.token_ids[:-1] if answer.finished else answer.token_ids
        return Graded.from_output(
            self.processor.tokenizer.decode(visible.tolist()),
            self.config.rollout.thinking == "on",
            messages=prompt.messages,
            reference=prompt.answer,
            domain=prompt.domain,
            extra=prompt.extra,
            num_tokens=len(answer.token_ids),
            finished=answer.finished,
        )

    def _reward(self, asked: Sequence[Asking]) -> None:
        """Set the rewards of all, normalised together, and tell the table how often each prompt was right."""
        policy, max_tokens = self.config.policy, self.config.rollout.max_tokens
        graded, scores = [item for a in asked for item in a.graded], [score for a in asked for score in a.scores]
        rewards = self.rewards.take(graded, scores)
        found = iter(zip(self.rewards.normalise(rewards), rewards.values, rewards.mask, strict=True))
        for asking in asked:
            raw = []
            for episode in asking.episodes:
                normalised, value, known = next(found)
                if known:
                    raw.append(min(max(value, 0.0), 1.0))
                    episode.reward = normalised
                    if policy.cut == "shape":
                        episode.reward -= overlong_penalty(episode.num_labels, max_tokens, policy.cut_tokens)
            self.table.observe(asking.number, float(np.mean(raw)) if raw else None)


def numbers_about(asked: Sequence[Asking]) -> dict[str, float]:
    """About a rollout, for the log: before any group is left out."""
    answered = [asking for asking in asked if asking.episodes]
    episodes = [episode for asking in answered for episode in asking.episodes]
    shares = [[score.value for score in asking.scores if score.value is not None] for asking in answered]
    known = [value for share in shares for value in share]
    answers = [episode.answer for episode in episodes if episode.answer is not None]
    num_prompt_tokens = sum(episode.num_tokens - episode.num_labels for episode in episodes)
    return {
        "accuracy": float(np.mean(known)) if known else 0.0,
        "rewards_missing": 1 - len(known) / len(episodes),
        "all_right": sum(bool(share) and min(share) >= 1 for share in shares) / len(answered),
        "all_wrong": sum(bool(share) and max(share) <= 0 for share in shares) / len(answered),
        "prompts_asked": float(len(answered)),
        "prompts_bad": float(len(asked) - len(answered)),
        "answer_tokens": float(np.mean([episode.num_labels for episode in episodes])),
        "cut_off": float(np.mean([not answer.finished for answer in answers])),
        "prefix_hits": sum(answer.num_cached for answer in answers) / num_prompt_tokens,
    }


def gathered(workers: Workers, item: Any) -> list[Any]:
    """One object of each process, on all of them."""
    if workers.num_processes == 1:
        return [item]
    found: list[Any] = [None] * workers.num_processes
    dist.all_gather_object(found, item)
    return found
